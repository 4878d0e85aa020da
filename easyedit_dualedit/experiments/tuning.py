"""Hyperparameters of the methods, chosen on validation records within a budget of trials.

Every method that has something to choose gets the same number of trials on the same records, which
nothing is trained on and none of which is measured afterwards. The first trial is the method as it
comes, so a choice is never worse on them; the others are drawn from its `space`.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.benchmark import alone, run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import TUNING_FOLDER, cases_of, failure, slug
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.experiments.results import intervals
from easyedit_dualedit.measure.contender import Bench, Contender, Method
from easyedit_dualedit.measure.metrics import AVERAGE

_PROTOCOL: Final = "generate"


@dataclass(frozen=True)
class Budget:
    """How many trials each method has, and on what."""

    trials: int
    """Of each method; fewer where it has fewer combinations of values."""
    validation: Sequence[Record]


def set_aside(
    training: Sequence[Record], evaluated: Sequence[Record], count: int
) -> tuple[list[Record], list[Record]]:
    """Return validation records, and the training records that are left.

    Validation records are the last of the training whose edit is of a picture that no evaluated
    edit shows; what is left shares no picture with them either.

    Args:
        training: records.
        evaluated: records that are measured afterwards.
        count: of the validation records.

    Raises:
        DataError: if there are too few.
    """
    shown = {picture for record in evaluated for picture in _pictures(record)}
    free = [record for record in training if not shown.intersection(_pictures(record))]
    validation = free[-count:]
    taken = {picture for record in validation for picture in _pictures(record)}
    rest = [record for record in training if not taken.intersection(_pictures(record))]
    if len(validation) < count or not rest:
        raise DataError(
            f"{count} validation records and something to train on cannot be had from"
            f" {len(training)} training records, {len(free)} of which share no picture with the"
            " evaluated ones; give more of them (--train), or a smaller --validation"
        )
    return validation, rest


def trials_of(
    contender: Contender, given: Mapping[str, Any], count: int, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the settings of each trial of a method, none for the first.

    Args:
        contender: the method.
        given: settings that a user gave, which stay.
        count: trials at most.
        seed: of the draws.
    """
    space = {name: values for name, values in contender.space.items() if name not in given}
    if not space:
        return []
    _, *combinations = itertools.product(*space.values())
    source = random.Random(f"{seed} {slug(contender.name)}")
    drawn = source.sample(combinations, min(count - 1, len(combinations)))
    return [{}, *(dict(zip(space, values, strict=True)) for values in drawn)]


def tuned(
    plan: Plan,
    contenders: Sequence[Contender],
    budget: Budget,
    folder: Path,
    *,
    decided_by: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> tuple[Plan, list[Contender], dict[str, Any]]:
    """Try settings of every method, and return the plan and the methods with the best.

    Trials that are in the folder are not made again, if the same decided them. What a chosen trial
    trained is used again.

    Args:
        plan: what is measured afterwards; its training records hold no validation records.
        contenders: the methods.
        budget: of each.
        folder: of the run; trials are kept in a folder in it.
        decided_by: plain values that decide the trials besides what their methods are.
        progress: whether to show bars.

    Returns:
        The plan with the chosen settings, the methods in the same order, and what to tell:
        `trials`, `validation` (records) and `methods`: name -> `trials`, each with `settings`,
        `average` (mean, low, high and n in percent, None if it failed) and `error`, and `chosen`,
        the place of the best, None if all failed.
    """
    decisive = json.dumps(dict(decided_by or {}), sort_keys=True)
    place = folder / TUNING_FOLDER / hashlib.sha256(decisive.encode()).hexdigest()[:12]
    settings = {name: dict(values) for name, values in plan.settings.items()}
    chosen: list[Contender] = []
    told: dict[str, Any] = {}
    with alone(place / ".lock"):
        for contender in contenders:
            given = plan.settings.get(slug(contender.name), {})
            trials = trials_of(contender, given, budget.trials, seed=plan.seed)
            if not trials:
                chosen.append(contender)
                continue
            tried = list(_tried(plan, contender, trials, budget, place, progress=progress))
            best = _best(tried)
            told[contender.name] = {"trials": tried, "chosen": best}
            if best is None:
                chosen.append(contender)
                continue
            settings[slug(contender.name)] = {**given, **trials[best]}
            chosen.append(_as_tried(contender, best, place, len(trials), trials[best]))
    about = {"trials": budget.trials, "validation": len(budget.validation), "methods": told}
    return replace(plan, settings=settings), chosen, about


def _tried(
    plan: Plan,
    contender: Contender,
    trials: Sequence[Mapping[str, Any]],
    budget: Budget,
    folder: Path,
    *,
    progress: bool,
) -> Iterator[dict[str, Any]]:
    given = plan.settings.get(slug(contender.name), {})
    rows = [
        replace(_in_folder(contender, number, folder), name=_name(contender, number))
        for number in range(len(trials))
    ]
    settings = {slug(row.name): {**given, **trial} for row, trial in zip(rows, trials, strict=True)}
    run_benchmark(
        replace(
            plan,
            evaluated=budget.validation,
            protocols=(_PROTOCOL,),
            close={},
            settings=settings,
            shown=None,
            shard=(0, 1),
        ),
        rows,
        folder,
        progress=progress,
    )
    indices = [record.index for record in budget.validation]
    for row, trial in zip(rows, trials, strict=True):
        error = failure(folder, row.name)
        average = None
        if error is None:
            average = intervals(cases_of(folder, row.name, indices))[_PROTOCOL][AVERAGE]
        yield {"settings": dict(trial), "average": average, "error": error}


def _best(tried: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the place of the best trial, the first of equals."""
    means = {
        place: trial["average"]["mean"] for place, trial in enumerate(tried) if trial["average"]
    }
    return max(means, key=lambda place: means[place]) if means else None


def _as_tried(
    contender: Contender, number: int, folder: Path, count: int, settings: Mapping[str, Any]
) -> Contender:
    """Return a method as it was in its best trial, with a remark that says so."""
    values = ", ".join(f"{name} = {value}" for name, value in settings.items())
    remark = f"Hyperparameters are the best of {count} trials on validation records: " + (
        f"{values}." if values else "those that it comes with."
    )
    made = _in_folder(contender, number, folder)
    return replace(made, remarks=(*contender.remarks, remark))


def _in_folder(contender: Contender, number: int, folder: Path) -> Contender:
    """Return a method that keeps what it trains with the trial of that number."""
    name = slug(_name(contender, number))

    def make(bench: Bench) -> Method:
        return contender.make(replace(bench, folder=folder / "trained" / name))

    return replace(contender, make=make)


def _name(contender: Contender, number: int) -> str:
    return f"{contender.name}, trial {number + 1}"


def _pictures(record: Record) -> set[Path]:
    """Return the files of the pictures that an edit is of."""
    pictures = (*record.request.files, *record.image_rephrase.files)
    return {picture for picture in pictures if isinstance(picture, Path)}
