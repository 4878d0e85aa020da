"""What a run of the benchmark measured, as one dictionary of numbers.

`metrics.json` holds nothing that differs between two runs of the same command; times and memory are
in `costs.json`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.benchmark_folder import (
    METHODS_FOLDER,
    UNEDITED,
    cases_of,
    costs_of,
    failure,
    method_folder,
)
from easyedit_dualedit.files import read_json
from easyedit_dualedit.measure.intervals import interval, paired_difference
from easyedit_dualedit.measure.metrics import AVERAGE, average, means
from easyedit_dualedit.measure.protocols import OF_SOME_RECORDS, PROTOCOLS
from easyedit_dualedit.measure.run import CASES_FOLDER, SETTINGS_FILE
from easyedit_dualedit.measure.target_split import TargetSplit, told

_FIRST = "generate"


def metrics_of(
    folder: Path, names: Sequence[str], indices: Sequence[int], plan: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the numbers of a run, or None while cases are missing.

    Args:
        folder: of the run.
        names: of the methods, in the order of the table, without the unedited model.
        indices: of all records.
        plan: what else the numbers belong to; becomes part of the result. Its `targets` are a
            `TargetSplit` as plain values, or `absent`: why there is none.

    Returns:
        `plan`'s entries; `methods`: name -> `status` ("done" or "failed"), `error`, `reads_label`,
        `remarks`, `protocols` (protocol -> metric -> mean, low, high, n in percent) and, if there
        is a split, `by_target` (see `TargetSplit.means`); `targets` (see `told`); and
        `comparison`, see `compared`.
    """
    methods: dict[str, Any] = {}
    averages: dict[str, dict[str, list[float]]] = {}
    remarks: Mapping[str, Mapping[str, Any]] = plan.get("contenders", {})
    split = _split_in(plan)
    for name in (UNEDITED, *names):
        cases = cases_of(folder, name, indices)
        error = failure(folder, name)
        about = remarks.get(name, {})
        entry: dict[str, Any] = {
            "status": "done" if error is None else "failed",
            "error": error,
            "reads_label": bool(about.get("reads_label", False)),
            "remarks": list(about.get("remarks", ())),
            "protocols": {},
        }
        if error is None:
            if len(cases) < len(indices):
                return None
            entry["protocols"] = intervals(cases)
            if isinstance(split, TargetSplit):
                entry["by_target"] = split.means({case["index"]: case["values"] for case in cases})
            averages[name] = {
                protocol: _averages(cases, protocol) for protocol in entry["protocols"]
            }
        methods[name] = entry
    rest = {key: value for key, value in plan.items() if key not in ("contenders", "targets")}
    if split is not None:
        rest["targets"] = told(split)
    return {**rest, "methods": methods, "comparison": compared(averages)}


def _split_in(plan: Mapping[str, Any]) -> TargetSplit | str | None:
    """Return which targets were seen in training, why that is not known, or None: never asked."""
    values = plan.get("targets")
    if values is None:
        return None
    return str(values["absent"]) if "absent" in values else TargetSplit.from_dict(values)


def missing(folder: Path, names: Sequence[str], indices: Sequence[int]) -> dict[str, int]:
    """Return how many cases each method lacks, leaving out those that lack none or failed."""
    lacking = {
        name: len(indices) - len(cases_of(folder, name, indices))
        for name in (UNEDITED, *names)
        if failure(folder, name) is None
    }
    return {name: count for name, count in lacking.items() if count}


def intervals(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return protocol -> metric -> mean, low, high and n, in percent.

    The average is that of a protocol's metrics, case by case. A case without a protocol or metric,
    such as a record without questions of portability, does not count in it.
    """
    numbers: dict[str, dict[str, Any]] = {}
    for protocol in PROTOCOLS:
        values = [case["values"][protocol] for case in cases if protocol in case["values"]]
        if not values:
            continue
        metrics = means(values)
        if protocol not in OF_SOME_RECORDS:
            metrics[AVERAGE] = interval(_averages(cases, protocol))
        numbers[protocol] = {name: metric.to_dict() for name, metric in metrics.items()}
    return numbers


def compared(averages: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any] | None:
    """Return the method with the highest average, and how far it is above the next.

    Args:
        averages: method -> protocol -> average of each case, 0 to 1, cases in one order.

    Returns:
        `protocol`, `best`, `runner_up`, `difference` (mean, low and high of `paired_difference`),
        `against`: the same difference to every other method, and `rival`: the best method that is
        no variant of `best` (variants share the name up to the comma), None if there is none. None
        without two methods to compare, or a protocol that has an average. The unedited model is no
        method.
    """
    done = [name for name in averages if name != UNEDITED]
    protocols = [
        name
        for name in PROTOCOLS
        if done and name in averages[done[0]] and name not in OF_SOME_RECORDS
    ]
    if len(done) < 2 or not protocols:
        return None
    protocol = _FIRST if _FIRST in protocols else protocols[0]
    values = {name: averages[name][protocol] for name in done}
    ranked = sorted(done, key=lambda name: -sum(values[name]))
    best = ranked[0]
    against = {name: paired_difference(values[best], values[name]).to_dict() for name in ranked[1:]}
    rivals = [name for name in ranked[1:] if _family(name) != _family(best)]
    return {
        "protocol": protocol,
        "best": best,
        "runner_up": ranked[1],
        "rival": rivals[0] if rivals else None,
        "difference": against[ranked[1]],
        "against": against,
    }


def costs(folder: Path, names: Sequence[str], indices: Sequence[int]) -> dict[str, Any]:
    """Return what each method costs; see `costs_of`."""
    return {name: costs_of(folder, name, indices) for name in (UNEDITED, *names)}


def stored_names(folder: Path) -> list[str]:
    """Return the names of the methods that a run holds, without the unedited model.

    Those of which nothing is there yet, not even settings, are left out: their run was stopped.

    Raises:
        DataError: if a folder of a method has cases and no settings.
    """
    names = []
    for path in sorted((folder / METHODS_FOLDER).iterdir()):
        settings = read_json(path / SETTINGS_FILE)
        if settings is None:
            if not (path / CASES_FOLDER).exists():
                continue
            raise DataError(f"{path} has no {SETTINGS_FILE}; remove the folder")
        if path != method_folder(folder, UNEDITED):
            names.append(str(settings["name"]))
    return names


def _family(name: str) -> str:
    return name.partition(",")[0]


def _averages(cases: Sequence[Mapping[str, Any]], protocol: str) -> list[float]:
    return [average(case["values"][protocol]) for case in cases if protocol in case["values"]]
