"""Which hyperparameters were chosen on validation records, and among what."""

from collections.abc import Mapping
from typing import Any

from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts


def tuning_table(metrics: Mapping[str, Any]) -> Table | None:
    """Return the table of choices: a row for each trial of a method; None if nothing was chosen.

    Args:
        metrics: of a benchmark; its `tuning` is what `experiments.tuning.tuned` tells.
    """
    tuning = metrics.get("tuning")
    if not tuning or not tuning["methods"]:
        return None
    rows: list[list[str]] = []
    chosen, lines = [], []
    for name, method in tuning["methods"].items():
        for place, trial in enumerate(method["trials"]):
            if place == method["chosen"]:
                chosen.append(len(rows))
            rows.append(
                [
                    name,
                    _shown(trial["settings"]),
                    _average(trial),
                    "chosen" if place == method["chosen"] else "",
                ]
            )
        lines.append(len(rows) - 1)
    return Table(
        [*texts("method", "settings"), *numbers("average"), *texts("")],
        rows,
        title="hyperparameters chosen on validation records",
        caption=(
            f"At most {tuning['trials']} trials of each method on {tuning['validation']} records"
            " that were set aside from the training records: nothing was trained on them, and none"
            " is evaluated. Average of the five metrics under generate, percent, with its 95 %"
            " interval; the first of equals is chosen. A method that is not named ran as it comes,"
            " DualEdit among them."
        ),
        bold=chosen,
        lines_after=lines,
    )


def _shown(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "as it comes"
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def _average(trial: Mapping[str, Any]) -> str:
    if trial["average"] is None:
        return f"failed: {trial['error']}"
    return mean_and_interval(trial["average"])
