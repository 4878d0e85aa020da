"""Folders of results as the commands write them, made without a model."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.records import METRICS

Wrong = Mapping[int, Sequence[str]]
"""Metrics that fail, by the index of their record."""


def queries_of(index: int) -> dict[str, Any]:
    return {
        metric: {"prompt": f"{metric} {index}?", "image": f"{index}.png", "target": f"yes {index}"}
        for metric in METRICS
    }


def outcome(index: int, wrong: Sequence[str]) -> dict[str, Any]:
    values = {metric: float(metric not in wrong) for metric in METRICS}
    answers = {metric: "no" if metric in wrong else f"yes {index}" for metric in METRICS}
    return {"values": {"generate": values, "visedit": values}, "answers": answers, "gate": {}}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def evaluation(folder: Path, count: int, methods: Mapping[str, Wrong]) -> Path:
    """Write what `evaluate` writes of some records."""
    write(folder / "run.json", {"data": f"digest of {count}", "records": count})
    for index in range(count):
        made = {"unedited": outcome(index, METRICS[:3])}
        made |= {name: outcome(index, wrong.get(index, ())) for name, wrong in methods.items()}
        case = {"index": index, "queries": queries_of(index), "before": {}, "methods": made}
        write(folder / "cases" / f"{index:05d}.json", case)
    return folder


def benchmark(folder: Path, count: int, methods: Mapping[str, Wrong]) -> Path:
    """Write what `benchmark` writes of some records."""
    write(folder / "run.json", {"data": f"digest of {count}", "records": count, "model": "tiny"})
    write(folder / "plan.json", {"order": list(methods), "indices": list(range(count))})
    unedited: Wrong = dict.fromkeys(range(count), METRICS[:3])
    for name, wrong in {"unedited": unedited, **methods}.items():
        part = folder / "methods" / name.lower()
        write(part / "run.json", {"name": name})
        for index in range(count):
            case = {"index": index, **outcome(index, wrong.get(index, ()))}
            if name == "unedited":
                case["queries"] = queries_of(index)
            write(part / "cases" / f"{index:05d}.json", case)
    return folder


def many(folder: Path, wrong: Wrong, data: str = "digest") -> Path:
    """Write what `many` writes of one method, with ten groups of one edit and one of ten."""
    write(folder / "run.json", {"data": data})
    for index in range(10):
        for group in (f"00001-{index:03d}", "00010-000"):
            case = {"index": index, **outcome(index, wrong.get(index, ()))}
            case["values"] = case["values"]["generate"]
            write(folder / "cases" / "dualedit" / group / "cases" / f"{index:05d}.json", case)
    return folder
