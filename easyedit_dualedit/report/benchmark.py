"""The benchmark's results as tables: for a terminal, in Markdown, in CSV."""

from collections.abc import Collection, Mapping
from typing import Any

from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EXPLANATIONS, OF_SOME_RECORDS, PROTOCOLS
from easyedit_dualedit.report.lead import lead_sentence
from easyedit_dualedit.report.table import Column, Table, mean_and_interval, numbers, texts
from easyedit_dualedit.report.target_split import split_line, split_rows, split_table
from easyedit_dualedit.report.tuning import tuning_table

_COST_TITLES = {
    "seconds_per_edit": "seconds\nan edit",
    "forward_overhead": "forward,\ntimes unedited",
    "peak_memory_bytes": "peak memory,\nMiB",
    "trained_parameters": "parameters\ntrained",
    "bytes_per_edit": "kB stored\nan edit",
    "making_seconds": "seconds to\nload or train",
}


def headline(metrics: Mapping[str, Any]) -> str:
    """Return in one sentence which method has the highest average, and by how much."""
    comparison = metrics.get("comparison")
    if not comparison:
        return (
            "Fewer than two methods were measured, or none under a protocol with an average, so"
            " there is nothing to compare."
        )
    best, protocol = comparison["best"], comparison["protocol"]
    mean = metrics["methods"][best]["protocols"][protocol][AVERAGE]["mean"]
    return lead_sentence(comparison, mean, "{:.1f}".format)


def measured_protocols(metrics: Mapping[str, Any]) -> list[str]:
    """Return the protocols that any method was measured under, in the order of the tables."""
    return [
        protocol
        for protocol in PROTOCOLS
        if any(protocol in method["protocols"] for method in metrics["methods"].values())
    ]


def protocol_table(metrics: Mapping[str, Any], protocol: str) -> Table:
    """Return the table of one protocol: a row for each method, failed ones with their reason.

    Where only some records have its questions, a metric's title says how many.
    """
    columns = _metrics_of(metrics, protocol)
    return Table(
        [Column("method", widest=48), *numbers(*_titles(protocol, columns))],
        [
            [_label(name, method), *_cells(method, protocol, columns)]
            for name, method in metrics["methods"].items()
        ],
        title=f"{protocol}: percent, mean and 95 % interval",
        caption=EXPLANATIONS[protocol],
    )


def costs_table(costs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return the table of costs: a row for each method."""
    return Table(
        [*texts("method"), *numbers(*_COST_TITLES.values())],
        [
            [name, *(_cost(key, cost.get(key)) for key in _COST_TITLES)]
            for name, cost in costs.items()
        ],
        title="Costs; forwards in pairs, memory beyond what the process held before the method",
    )


def benchmark_markdown(metrics: Mapping[str, Any], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """Return all tables of a run as Markdown, with what they mean and what was worked around."""
    parts = [f"**{headline(metrics)}**\n"]
    if split_line(metrics):
        parts.append(f"{split_line(metrics)}\n")
    for protocol in measured_protocols(metrics):
        table = protocol_table(metrics, protocol)
        parts += [f"### {protocol}\n", f"{table.caption}\n", table.markdown()]
        split = split_table(metrics, protocol)
        if split is not None:
            parts += [f"#### {split.title}\n", split.markdown()]
    parts += ["### costs\n", costs_table(costs).markdown()]
    choices = tuning_table(metrics)
    if choices is not None:
        parts += [f"### {choices.title}\n", f"{choices.caption}\n", choices.markdown()]
    remarks = [
        f"- {name}: {remark}\n"
        for name, method in metrics["methods"].items()
        for remark in method["remarks"]
    ]
    if remarks:
        parts += ["### how the methods were run\n", "".join(remarks)]
    return "\n".join(parts)


def benchmark_csv(metrics: Mapping[str, Any]) -> str:
    """Return the numbers of a run as CSV: a line for each method, protocol, metric and targets."""
    rows: list[list[Any]] = []
    for name, method in metrics["methods"].items():
        if method["error"]:
            rows.append([name, *[""] * 7, method["error"]])
        for protocol, values in method["protocols"].items():
            for metric, value in values.items():
                ends = [value[end] for end in ("mean", "low", "high", "n")]
                rows.append([name, protocol, metric, "all", *ends, ""])
        rows += [[*row, ""] for row in split_rows(name, method)]
    titles = ("method", "protocol", "metric", "targets", "mean", "low", "high", "n", "error")
    return Table(texts(*titles), rows).csv()


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
    label = f"{name} (reads the label)" if method.get("reads_label") else name
    return f"{label}; failed: {method['error']}" if method.get("error") else label


def _metrics_of(metrics: Mapping[str, Any], protocol: str) -> dict[str, int]:
    """Return how many records each metric of a protocol counts."""
    for method in metrics["methods"].values():
        if protocol in method["protocols"]:
            return {name: value["n"] for name, value in method["protocols"][protocol].items()}
    return {}


def _titles(protocol: str, columns: Mapping[str, int]) -> list[str]:
    titles = {name: name.replace("_", "\n") for name in columns}
    if protocol not in OF_SOME_RECORDS:
        return list(titles.values())
    counts = {name: f"{n:,} edit{'' if n == 1 else 's'}" for name, n in columns.items()}
    return [f"{title}\n({counts[name]})" for name, title in titles.items()]


def _cells(method: Mapping[str, Any], protocol: str, columns: Collection[str]) -> list[str]:
    if method.get("error"):
        return ["failed"] * len(columns)
    values = method["protocols"].get(protocol, {})
    return [
        mean_and_interval(values[column]) if column in values else "not measured"
        for column in columns
    ]
