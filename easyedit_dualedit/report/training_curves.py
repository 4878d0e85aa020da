"""The curves of a training as a table and a plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.report.plots import new_figure, plot_where_possible, save_figure
from easyedit_dualedit.report.table import Table, numbers
from easyedit_dualedit.train.curves import TABLE_FILE, Line, read_curves, write_table

PLOT_FILE = "curves.png"


def draw_curves(folder: Path) -> list[Line]:
    """Write the table and, where matplotlib is installed, the plot of a training's curves.

    Args:
        folder: of the lines.

    Returns:
        The lines.

    Raises:
        DataError: if there are none, or they are damaged.
    """
    lines = read_curves(folder)
    write_table(lines, folder / TABLE_FILE)
    plot_where_possible(plot_curves, lines, folder / PLOT_FILE)
    return lines


def validation_table(lines: Sequence[Line]) -> Table | None:
    """Return what validation measured, a row for each time; None if nothing was validated."""
    rows, gate, opens = [], "", ""
    for line in lines:
        if line["part"] == "validation":
            gate = line["gate"]
            opens = ", ".join(
                f"{metric.replace('_', ' ')} {share:.1%}"
                for metric, share in line.get("opens", {}).items()
            )
            shares = [line["gated"]["all"].get(metric) for metric in METRICS]
            cells = ["" if share is None else f"{share:.1%}" for share in shares]
            best = "best" if line["is_best"] else ""
            rows.append([str(line["step"]), f"{line['loss']['total']:.3f}", *cells, best])
    if not rows:
        return None
    columns = numbers("step", "loss", *(metric.replace("_", " ") for metric in METRICS), "")
    caption = f"the gate opens for: {opens}" if opens else ""
    return Table(columns, rows, f"validation, gate: {gate}", caption)


def plot_curves(lines: Sequence[Line], path: Path) -> None:
    """Write losses, measures with the gate, and the average by group against the step.

    Args:
        lines: of one training, in order.
        path: PNG file.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    figure, (losses, measures, groups) = new_figure(1, 3)
    training = [line for line in lines if line["part"] == "training"]
    validation = [line for line in lines if line["part"] == "validation"]
    for name in _names(training, "loss"):
        _curve(losses, training, ("loss", name), f"{name}, training", linewidth=1)
    if validation:
        total = ("loss", "total")
        _curve(losses, validation, total, "total, validation", color="black", marker="o")
    losses.set_yscale("log")
    losses.set_title("losses, nats")
    for metric in METRICS:
        _curve(measures, validation, ("gated", "all", metric), metric, percent=True, marker="o")
    gate = validation[-1]["gate"] if validation else "no validation"
    measures.set_title(f"validation records, % (gate: {gate})")
    for group in _names(validation, "adapters"):
        for part, line in (("gated", "-"), ("adapters", "--")):
            way = (part, group, METRICS[0])
            label = f"{group} targets" + ", gate held open" * (part == "adapters")
            _curve(groups, validation, way, label, percent=True, linestyle=line, marker=".")
    groups.set_title("reliability, %")
    for axis in (measures, groups):
        axis.set_ylim(-3, 103)
    best = [line["step"] for line in validation if line["is_best"]]
    for axis in (losses, measures, groups):
        axis.set_xlabel("step")
        if best:
            axis.axvline(best[-1], color="tab:gray", linestyle=":", label="best")
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="x-small")
    save_figure(figure, path)


def _names(lines: Sequence[Line], part: str) -> list[str]:
    return list(dict.fromkeys(name for line in lines for name in line[part]))


def _curve(
    axis: Any,
    lines: Sequence[Line],
    way: Sequence[str],
    label: str,
    *,
    percent: bool = False,
    **style: Any,
) -> None:
    points = []
    for line in lines:
        value: Any = line
        for name in way:
            value = value.get(name, {})
        if isinstance(value, float):
            points.append((line["step"], 100 * value if percent else value))
    if points:
        axis.plot(*zip(*points, strict=True), label=label, **style)
