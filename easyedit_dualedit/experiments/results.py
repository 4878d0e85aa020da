"""What a run of the benchmark found: one dictionary of numbers, and its tables.

`metrics.json` holds nothing that differs between two runs of the same command; times and memory are
in `costs.json`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

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
from easyedit_dualedit.measure.metrics import AVERAGE, RESAMPLES, Interval, interval
from easyedit_dualedit.measure.protocols import EXPLANATIONS, PROTOCOLS

_NO_AVERAGE = ("portability",)
_FIRST = "generate"


def metrics_of(
    folder: Path, names: Sequence[str], indices: Sequence[int], plan: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the numbers of a run, or None while cases are missing.

    Args:
        folder: of the run.
        names: of the methods, in the order of the table, without the unedited model.
        indices: of all records.
        plan: what else the numbers belong to; becomes part of the result.

    Returns:
        `plan`'s entries; `methods`: name -> `status` ("done" or "failed"), `error`, `reads_label`,
        `remarks` and `protocols` (protocol -> metric -> mean, low, high, n in percent); and
        `comparison`, see `compared`.
    """
    methods: dict[str, Any] = {}
    averages: dict[str, dict[str, list[float]]] = {}
    remarks: Mapping[str, Mapping[str, Any]] = plan.get("contenders", {})
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
            averages[name] = {
                protocol: _averages(cases, protocol) for protocol in entry["protocols"]
            }
        methods[name] = entry
    rest = {key: value for key, value in plan.items() if key != "contenders"}
    return {**rest, "methods": methods, "comparison": compared(averages)}


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

    The average is that of a protocol's metrics, case by case. A case without a protocol, such as a
    record without questions of portability, does not count in it.
    """
    found: dict[str, dict[str, Any]] = {}
    for protocol in PROTOCOLS:
        values = [case["values"][protocol] for case in cases if protocol in case["values"]]
        if not values:
            continue
        metrics = {name: interval([value[name] for value in values]) for name in values[0]}
        if protocol not in _NO_AVERAGE:
            metrics[AVERAGE] = interval(_averages(cases, protocol))
        found[protocol] = {name: metric.to_dict() for name, metric in metrics.items()}
    return found


def compared(averages: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any] | None:
    """Return the method with the highest average, and how far it is above the next.

    Args:
        averages: method -> protocol -> average of each case, 0 to 1, cases in one order.

    Returns:
        `protocol`, `best`, `runner_up`, `difference` (a paired bootstrap's mean, low and high, in
        percentage points), `against`: the same difference to every other method, and `rival`: the
        best method that is no variant of `best` (variants share the name up to the comma), None if
        there is none. None without two methods to compare. The unedited model is no method.
    """
    done = [name for name in averages if name != UNEDITED]
    protocols = [name for name in PROTOCOLS if done and name in averages[done[0]]]
    if len(done) < 2 or not protocols:
        return None
    protocol = _FIRST if _FIRST in protocols else protocols[0]
    values = {name: np.asarray(averages[name][protocol]) for name in done}
    ranked = sorted(done, key=lambda name: -float(values[name].mean()))
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


def paired_difference(first: Any, second: Any, *, seed: int = 0) -> Interval:
    """Return the mean of `first` minus `second` in percentage points, with a 95 % interval.

    Args:
        first: values of one method, case by case, 0 to 1.
        second: values of another on the same cases.
        seed: of the bootstrap over cases.
    """
    difference = (np.asarray(first, dtype=np.float64) - np.asarray(second)) * 100.0
    count = len(difference)
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    low, high = np.percentile(difference[draws].mean(1), [2.5, 97.5])
    return Interval(float(difference.mean()), float(low), float(high), count)


def costs(folder: Path, names: Sequence[str], indices: Sequence[int]) -> dict[str, Any]:
    """Return what each method costs; see `costs_of`."""
    return {name: costs_of(folder, name, indices) for name in (UNEDITED, *names)}


def headline(metrics: Mapping[str, Any]) -> str:
    """Return in one sentence which method has the highest average, and by how much."""
    found = metrics.get("comparison")
    if not found:
        return "Fewer than two methods were measured, so there is nothing to compare."
    difference = found["difference"]
    mean = metrics["methods"][found["best"]]["protocols"][found["protocol"]][AVERAGE]["mean"]
    sentence = (
        f"{found['best']} has the highest average under {found['protocol']}: {mean:.1f}, which is"
        f" {_written(difference)} above {found['runner_up']}"
    )
    rival = found["rival"]
    if rival is None or rival == found["runner_up"]:
        return sentence + "."
    return f"{sentence}, and {_written(found['against'][rival])} above {rival}."


def _written(difference: Mapping[str, float]) -> str:
    ends = f"{difference['low']:.1f} to {difference['high']:.1f}"
    return f"{difference['mean']:.1f} (95 % interval {ends})"


def _family(name: str) -> str:
    return name.partition(",")[0]


def protocol_table(metrics: Mapping[str, Any], protocol: str) -> Table:
    """Return the table of one protocol: a row for each method, failed ones with their reason."""
    columns = _columns(metrics, protocol)
    table = Table(
        title=f"{protocol}: percent, mean ± half of the bootstrap 95 % interval",
        caption=EXPLANATIONS[protocol],
    )
    table.add_column("method", max_width=48)
    for column in columns:
        table.add_column(column.replace("_", "\n"), justify="right")
    for name, method in metrics["methods"].items():
        cells = _cells(method, protocol, columns)
        table.add_row(_label(name, method), *cells)
    return table


def costs_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of costs: a row for each method."""
    table = Table(title="Costs; memory is the process's peak while it edits and is asked")
    table.add_column("method")
    for title in _COST_TITLES.values():
        table.add_column(title, justify="right")
    for name, cost in found.items():
        table.add_row(name, *(_cost(key, cost.get(key)) for key in _COST_TITLES))
    return table


def to_markdown(metrics: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables of a run as Markdown, with what they mean and what was worked around."""
    lines = [f"**{headline(metrics)}**", ""]
    for protocol in _measured(metrics):
        columns = _columns(metrics, protocol)
        titles = [column.replace("_", " ") for column in columns]
        lines += [f"### {protocol}", "", EXPLANATIONS[protocol], ""]
        lines += _markdown_table(
            ["method", *titles],
            [
                [_label(name, method), *_cells(method, protocol, columns)]
                for name, method in metrics["methods"].items()
            ],
        )
    lines += ["### costs", ""]
    lines += _markdown_table(
        ["method", *(title.replace("\n", " ") for title in _COST_TITLES.values())],
        [
            [name, *(_cost(key, cost.get(key)) for key in _COST_TITLES)]
            for name, cost in found.items()
        ],
    )
    told = {name: method["remarks"] for name, method in metrics["methods"].items()}
    if any(told.values()):
        lines += ["### how the methods were run", ""]
        lines += [f"- {name}: {remark}" for name, every in told.items() for remark in every]
        lines += [""]
    return "\n".join(lines)


def to_csv(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of a run as CSV: a line for each method, protocol and metric."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "protocol", "metric", "mean", "low", "high", "n", "error"])
    for name, method in metrics["methods"].items():
        if method["error"]:
            writer.writerow([name, "", "", "", "", "", "", method["error"]])
        for protocol, values in method["protocols"].items():
            for metric, value in values.items():
                ends = [value[end] for end in ("mean", "low", "high", "n")]
                writer.writerow([name, protocol, metric, *ends, ""])
    return text.getvalue()


def stored_names(folder: Path) -> list[str]:
    """Return the names of the methods that a run holds, without the unedited model.

    Raises:
        DataError: if a folder of a method has no settings.
    """
    found = []
    for path in sorted((folder / METHODS_FOLDER).iterdir()):
        settings = read_json(path / "run.json")
        if settings is None:
            raise DataError(f"{path} has no run.json; remove the folder")
        if path != method_folder(folder, UNEDITED):
            found.append(str(settings["name"]))
    return found


_COST_TITLES = {
    "seconds_per_edit": "seconds\nan edit",
    "forward_overhead": "forward,\ntimes unedited",
    "peak_memory_bytes": "peak memory,\nMiB",
    "trained_parameters": "parameters\ntrained",
    "bytes_per_edit": "kB stored\nan edit",
    "making_seconds": "seconds to\nload or train",
}


def _cost(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key == "peak_memory_bytes":
        return f"{value / 2**20:.0f}"
    if key == "bytes_per_edit":
        return f"{value / 1000:.1f}"
    if key == "trained_parameters":
        return f"{value:,.0f}"
    return f"{value:.1f}" if key == "making_seconds" else f"{value:.3f}"


def _label(name: str, method: Mapping[str, Any]) -> str:
    label = f"{name} (reads the label)" if method["reads_label"] else name
    return f"{label}; failed: {method['error']}" if method["error"] else label


def _measured(metrics: Mapping[str, Any]) -> list[str]:
    return [
        protocol
        for protocol in PROTOCOLS
        if any(protocol in method["protocols"] for method in metrics["methods"].values())
    ]


def _columns(metrics: Mapping[str, Any], protocol: str) -> list[str]:
    for method in metrics["methods"].values():
        if protocol in method["protocols"]:
            return list(method["protocols"][protocol])
    return []


def _cells(method: Mapping[str, Any], protocol: str, columns: Sequence[str]) -> list[str]:
    if method["error"]:
        return ["failed"] * len(columns)
    values = method["protocols"].get(protocol, {})
    return [_cell(values[column]) if column in values else "not measured" for column in columns]


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1f} ±{(value['high'] - value['low']) / 2:.1f}"


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(titles), "|" + "---|" * len(titles), *map(line, rows), ""]


def _averages(cases: Sequence[Mapping[str, Any]], protocol: str) -> list[float]:
    values = [case["values"][protocol] for case in cases if protocol in case["values"]]
    return [sum(value.values()) / len(value) for value in values]
