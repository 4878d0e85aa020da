"""Metrics of edits whose target was seen in training, beside those of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.measure.target_split import GROUPS, SPLIT_METRICS
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts

GROUP_NAMES: Mapping[str, str] = {
    "seen": "seen in training",
    "unseen": "never seen as a whole",
    "new_word": "with a word never seen",
}


def split_line(metrics: Mapping[str, Any]) -> str:
    """Return in a sentence how many targets were seen in training, or why that is not known.

    Empty if the numbers were made without asking.
    """
    targets = metrics.get("targets")
    if targets is None:
        return ""
    if "absent" in targets:
        return f"No split by targets seen in training: {targets['absent']}."
    seen, unseen, new_word = (targets[group] for group in GROUPS)
    line = f"Of {seen + unseen:,} targets, {seen:,} were seen as a whole in training"
    if unseen:
        line += f" and {unseen:,} were not, {new_word:,} of them with a word never seen"
    return f"{line} ({targets['source']})."


def shown_groups(metrics: Mapping[str, Any]) -> list[str]:
    """Return the groups that hold anything, and differ from the whole and from each other."""
    targets = metrics.get("targets") or {}
    if "absent" in targets or not targets:
        return []
    seen, unseen, new_word = (targets[group] for group in GROUPS)
    parted = ["seen", "unseen"] if seen and unseen else []
    return [*parted, *(["new_word"] if 0 < new_word < unseen else [])]


def split_table(metrics: Mapping[str, Any], protocol: str) -> Table | None:
    """Return the table of one protocol by groups of targets: a row for each group and method.

    None where no group differs from the whole, or the protocol asks for no target.
    """
    rows: list[list[str]] = []
    lines = []
    columns = SPLIT_METRICS.get(protocol, ())
    for group in shown_groups(metrics):
        before = len(rows)
        for name, method in metrics["methods"].items():
            values = method.get("by_target", {}).get(protocol, {}).get(group)
            if values:
                count = max(value["n"] for value in values.values())
                cells = [
                    mean_and_interval(values[metric]) if metric in values else "not measured"
                    for metric in columns
                ]
                rows.append([GROUP_NAMES[group], f"{count:,}", name, *cells])
        if len(rows) > before:
            lines.append(len(rows) - 1)
    if not rows:
        return None
    titles = [metric.replace("_", "\n") for metric in columns]
    return Table(
        [*texts("target"), *numbers("edits"), *texts("method"), *numbers(*titles)],
        rows,
        title=f"{protocol}, by whether the target was seen in training",
        lines_after=lines,
    )


def split_rows(name: str, method: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
    """Return method, protocol, metric, group, mean, low, high and n of each number of a method."""
    return [
        [name, protocol, metric, group, *(value[end] for end in ("mean", "low", "high", "n"))]
        for protocol, groups in method.get("by_target", {}).items()
        for group, values in groups.items()
        for metric, value in values.items()
    ]
