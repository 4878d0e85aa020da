"""What `many` writes: the numbers, the report and its plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from easyedit_dualedit.commands.console import console
from easyedit_dualedit.commands.many_methods import SEQUENTIAL, sized_name
from easyedit_dualedit.experiments.benchmark_folder import slug
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.experiments.many_edits import Group, point_of
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.measure.run import CASES_FOLDER, METRICS_FILE
from easyedit_dualedit.measure.target_split import TargetSplit, told
from easyedit_dualedit.method.edit_memory import DEFAULT_PRECISION
from easyedit_dualedit.method.packing import PRECISIONS
from easyedit_dualedit.report.many_edits import many_split_table, report_of
from easyedit_dualedit.report.page.wording import counted
from easyedit_dualedit.report.plots import is_available as has_plots
from easyedit_dualedit.report.plots import plot_many, plot_sizes
from easyedit_dualedit.report.target_split import split_line

GATE_FILE = "gate.json"


def write_reports(
    folder: Path,
    groups: Sequence[Group],
    sized: Sequence[Group],
    settings: Mapping[str, Any],
    report: Path | None,
    split: TargetSplit | str,
) -> None:
    """Write numbers, report and plots, and print the average of each point.

    Args:
        folder: of the run.
        groups: edits that every method was measured on.
        sized: edits that DualEdit was measured on at each precision.
        settings: what the run is about.
        report: where the report is written too.
        split: which targets were seen in training, or why that is not known.
    """
    cases = folder / CASES_FOLDER
    points: dict[str, list[dict[str, Any]]] = {}
    for name in (DUALEDIT, *SEQUENTIAL):
        for count in sorted({group.count for group in groups}):
            of_count = [group for group in groups if group.count == count]
            point = point_of(cases / slug(name), of_count, split)
            if point is not None:
                points.setdefault(name, []).append(point)
    sizes = []
    for precision in PRECISIONS:
        point = point_of(cases / slug(sized_name(precision)), sized)
        if point is not None:
            sizes.append({"precision": precision, **point})
    metrics = {
        "settings": dict(settings),
        "targets": told(split),
        "points": points,
        "sizes": sizes,
        **(read_json(cases / GATE_FILE) or {}),
        "default_precision": DEFAULT_PRECISION,
    }
    write_json(folder / METRICS_FILE, metrics)
    targets = [folder / "many_edits.md", *([] if report is None else [report])]
    for target in targets:
        write_text(target, report_of(metrics, plots=has_plots()))
        if has_plots():
            plot_many(points, target.with_name("many_edits.png"))
            plot_sizes(sizes, target.with_name("many_edits_sizes.png"))
    shown = console()
    for name, of_method in points.items():
        for point in of_method:
            shown.print(
                f"{name}: {counted(point['edits'], 'edit')}, average {point['average']:.1f}"
            )
    parts = many_split_table(metrics)
    if parts is not None:
        shown.print(parts.for_terminal())
    shown.print(Text(split_line(metrics)))
    shown.print(f"written: {targets[-1]}, and {folder / METRICS_FILE}")
