"""What `benchmark`, `evaluate`, the demo and `many` have written, read in one form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.benchmark_folder import (
    METHODS_FOLDER,
    UNEDITED,
    cases_of,
    failure,
    slug,
)
from easyedit_dualedit.experiments.many_edits import PROTOCOL
from easyedit_dualedit.experiments.results import stored_names
from easyedit_dualedit.files import read_json
from easyedit_dualedit.measure.run import CASES_FOLDER, METRICS_FILE, SETTINGS_FILE

Kind = Literal["benchmark", "evaluate", "many"]
Place = tuple[str, int]
"""Which group of edits a case belongs to, empty where each edit is alone; and its record."""

_PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class StoredCase:
    """What one edited model said to the questions about one record."""

    values: Mapping[str, Mapping[str, float]]
    """Protocol -> metric -> 0 to 1."""
    answers: Mapping[str, str]
    """Question -> the free greedy answer."""


@dataclass(frozen=True)
class StoredRun:
    """A folder of results."""

    folder: Path
    kind: Kind
    settings: Mapping[str, Any]
    """What decided the results, as the run keeps it."""
    methods: Mapping[str, Mapping[Place, StoredCase]]
    queries: Mapping[int, Mapping[str, Mapping[str, Any]]]
    """What was asked about each record, by its index; empty where the run does not keep it."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the cases in a folder of results.

        Raises:
            DataError: if there is no run, or one of its files is damaged.
        """
        settings = read_json(folder / SETTINGS_FILE)
        if settings is None or "probing" in settings:
            why = f"there is no {SETTINGS_FILE}" if settings is None else "it is one of locate"
            raise DataError(
                f"{folder} holds no run ({why}); give the folder that benchmark, evaluate, demo or"
                " many wrote, such as outputs/benchmark"
            )
        if (folder / METHODS_FOLDER).is_dir():
            return cls(folder, "benchmark", settings, *_of_benchmark(folder))
        first = next((folder / CASES_FOLDER).glob("*.json"), None)
        # Of `many` only the gate's file lies there.
        if first is not None and first.stem.isdecimal():
            return cls(folder, "evaluate", settings, *_of_evaluation(folder))
        return cls(folder, "many", settings, _of_many(folder), {})

    @property
    def protocols(self) -> list[str]:
        """The protocols that any case has values of."""
        names = dict.fromkeys(
            protocol
            for cases in self.methods.values()
            for case in cases.values()
            for protocol in case.values
        )
        return list(names)


def metrics_in(folder: Path) -> dict[str, Any]:
    """Return the numbers that a run wrote at its end.

    Raises:
        DataError: if there are none, or their file is damaged.
    """
    metrics = read_json(folder / METRICS_FILE)
    if metrics is None or "methods" not in metrics:
        raise DataError(
            f"{folder} holds no numbers of methods; give the folder that benchmark, evaluate or"
            f" demo wrote its {METRICS_FILE} to"
        )
    return metrics


def model_of(settings: Mapping[str, Any]) -> str:
    """Return which model a run's settings name; empty if they name none."""
    named = settings.get("model") or (settings.get("hparams") or {}).get("model_name")
    return str(named or "")


def _of_benchmark(folder: Path) -> tuple[dict[str, Any], dict[int, Any]]:
    plan = read_json(folder / _PLAN_FILE) or {}
    names = [name for name in plan.get("order", stored_names(folder))]
    methods: dict[str, dict[Place, StoredCase]] = {}
    queries: dict[int, Any] = {}
    for name in (UNEDITED, *names):
        if failure(folder, name) is not None:
            continue
        indices = plan.get("indices") or _indices(folder / METHODS_FOLDER / slug(name))
        cases = cases_of(folder, name, indices)
        methods[name] = {("", case["index"]): _case(case) for case in cases}
        queries |= {case["index"]: case["queries"] for case in cases if "queries" in case}
    return methods, queries


def _of_evaluation(folder: Path) -> tuple[dict[str, Any], dict[int, Any]]:
    methods: dict[str, dict[Place, StoredCase]] = {}
    queries: dict[int, Any] = {}
    for case in _cases(folder):
        queries[case["index"]] = case["queries"]
        for name, outcome in case["methods"].items():
            methods.setdefault(name, {})["", case["index"]] = _case(outcome)
    return methods, queries


def _of_many(folder: Path) -> dict[str, dict[Place, StoredCase]]:
    """Return the cases by method and number of edits, which a group's folder is named by."""
    methods: dict[str, dict[Place, StoredCase]] = {}
    for group in sorted((folder / CASES_FOLDER).glob("*/*-*")):
        count, _, place = group.name.partition("-")
        if not count.isdecimal():
            continue
        name = f"{group.parent.name}, {int(count):,} edits"
        for case in _cases(group):
            values = {**case, "values": {PROTOCOL: case["values"]}}
            methods.setdefault(name, {})[place, case["index"]] = _case(values)
    return methods


def _case(case: Mapping[str, Any]) -> StoredCase:
    return StoredCase(case["values"], case.get("answers") or {})


def _cases(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / CASES_FOLDER).glob("*.json")):
        case = read_json(path)
        if case is not None and "index" in case:
            yield case


def _indices(folder: Path) -> list[int]:
    return [int(path.stem) for path in sorted((folder / CASES_FOLDER).glob("*.json"))]
