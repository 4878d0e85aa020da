"""Hyperparameters are chosen on validation records, in as many trials for every method."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_benchmark import plan_of
from tiny_data import write_data

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.tuning import Budget, set_aside, trials_of, tuned
from easyedit_dualedit.measure.contender import Bench, Contender, Edited

SPACE = {"strength": (1.0, 0.0, 2.0), "steps": (1, 2)}


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


class Noisy:
    """Noise of a given strength on the head: none leaves both localities as they are."""

    trained_parameters = 0
    made: list[tuple[Path, dict[str, Any]]]

    def __init__(self, bench: Bench):
        self._model, _ = bench.load()
        self._strength = bench.settings.get("strength", 1.0)
        self.made.append((bench.folder, dict(bench.settings)))
        if bench.settings.get("broken"):
            raise ValueError("cannot be made")

    @contextmanager
    def edit(self, _record: Record) -> Iterator[Edited]:
        head = self._model.lm_head.weight
        saved = head.detach().clone()
        with torch.no_grad():
            head.add_(self._strength * 10 * torch.randn_like(head))
        yield Edited(self._model, 1)
        with torch.no_grad():
            head.copy_(saved)


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch) -> Contender:
    monkeypatch.setattr(Noisy, "made", [], raising=False)
    return Contender("Noisy", Noisy, remarks=("As it is.",), space=SPACE)


def test_the_first_trial_is_the_method_as_it_comes_and_none_comes_twice(noisy: Contender):
    every = trials_of(noisy, {}, 100)
    assert every[0] == {} and len(every) == 6
    assert {"strength": 1.0, "steps": 1} not in every
    assert len({tuple(trial.items()) for trial in every}) == 6
    assert trials_of(noisy, {}, 3) == trials_of(noisy, {}, 3)
    assert len(trials_of(noisy, {}, 3)) == 3 and trials_of(noisy, {}, 1) == [{}]
    assert trials_of(noisy, {}, 3, seed=1) != trials_of(noisy, {}, 3, seed=2)


def test_what_a_user_gave_is_not_tried(noisy: Contender):
    assert all("steps" not in trial for trial in trials_of(noisy, {"steps": 9}, 100))
    assert trials_of(noisy, {"steps": 9, "strength": 0.5}, 100) == []
    assert trials_of(Contender("Plain", Noisy), {}, 100) == []


def test_validation_records_share_no_picture_with_those_evaluated_or_trained_on(
    records: list[Record],
):
    evaluated, training = records[:2], records[1:]
    shared = replace(
        records[7], request=replace(records[7].request, image=records[0].request.image)
    )
    again = replace(records[3], index=30)  # shows the picture of a validation record, see below
    validation, rest = set_aside([*training[:-1], again, shared], evaluated, 3)
    assert [record.index for record in validation] == [5, 6, 30]
    # Records 3 and 30 are of one picture; record 1 is evaluated, and may be trained on.
    assert [record.index for record in rest] == [1, 2, 4, 7]
    with pytest.raises(DataError, match="7 validation records"):
        set_aside(training, evaluated, 7)
    with pytest.raises(DataError, match="give more of them"):
        set_aside([], evaluated, 1)


def test_the_best_trial_is_chosen_and_told(noisy: Contender, records: list[Record], tmp_path: Path):
    plain = Contender("Plain", Noisy)
    plan = plan_of(records[:2], tmp_path, training=records[2:5])
    budget = Budget(6, records[5:])
    after, methods, told = tuned(plan, [noisy, plain], budget, tmp_path / "run", progress=False)
    trials = told["methods"]["Noisy"]["trials"]
    assert (told["trials"], told["validation"], list(told["methods"])) == (6, 3, ["Noisy"])
    assert [trial["settings"] for trial in trials] == trials_of(noisy, {}, 6)
    assert all(trial["average"]["n"] == 3 and trial["error"] is None for trial in trials)
    best = told["methods"]["Noisy"]["chosen"]
    assert trials[best]["average"]["mean"] == max(trial["average"]["mean"] for trial in trials)
    assert trials[best]["settings"]["strength"] == 0.0, "which alone leaves the model as it is"
    assert after.settings == {"noisy": trials[best]["settings"]}
    assert after.evaluated == plan.evaluated and after.protocols == plan.protocols
    assert [method.name for method in methods] == ["Noisy", "Plain"] and methods[1] is plain
    assert methods[0].remarks[0] == "As it is." and "strength = 0.0" in methods[0].remarks[-1]
    # Every trial trains in a folder of its own, and the chosen one is used again.
    folders = [folder for folder, _ in Noisy.made]
    assert len(set(folders)) == 6
    methods[0].make(Bench("tiny", plan.load, "cpu", tmp_path / "elsewhere"))
    assert Noisy.made[-1][0] == folders[best]
    made = len(Noisy.made)
    again = tuned(plan, [noisy, plain], budget, tmp_path / "run", progress=False)
    assert again[2] == told and len(Noisy.made) == made, "nothing is tried twice"


def test_trials_that_something_else_decided_are_not_used_again(
    noisy: Contender, records: list[Record], tmp_path: Path
):
    plan = plan_of(records[:2], tmp_path, training=records[2:5])
    made = []
    for model in ("one", "one", "other"):
        tuned(
            plan,
            [noisy],
            Budget(2, records[6:]),
            tmp_path / "run",
            decided_by={"model": model},
            progress=False,
        )
        made.append(len(Noisy.made))
    assert made == [2, 2, 4]
    assert len({folder for folder, _ in Noisy.made}) == 4


def test_a_trial_that_fails_is_a_trial_and_all_that_fail_leave_the_method_as_it_comes(
    noisy: Contender, records: list[Record], tmp_path: Path
):
    plan = plan_of(records[:2], tmp_path, training=records[2:5])
    budget = Budget(2, records[6:])
    some = replace(noisy, space={"broken": (False, True)})
    _, _, told = tuned(plan, [some], budget, tmp_path / "some", progress=False)
    failed = told["methods"]["Noisy"]["trials"][1]
    assert failed["average"] is None and failed["error"] == "ValueError: cannot be made"
    assert told["methods"]["Noisy"]["chosen"] == 0
    broken = replace(plan, settings={"noisy": {"broken": True}})
    after, methods, told = tuned(broken, [noisy], budget, tmp_path / "all", progress=False)
    assert told["methods"]["Noisy"]["chosen"] is None
    assert after.settings == broken.settings and methods == [noisy]
