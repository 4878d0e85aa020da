"""What `ablate` measured, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.experiments.ablate import COLUMNS
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts
from easyedit_dualedit.report.target_split import split_table

_ENDS = ("mean", "low", "high")
_PLACE = ("variant", "gate", "text_layer", "vision_layer")


def ablation_table(rows: Sequence[Mapping[str, Any]], protocol: str = "generate") -> Table:
    """Return the table of one protocol, in percent: a row for each variant and gate."""
    cells = [
        [
            row["variant"],
            row["gate"],
            f"{row['text_layer']}, {row['vision_layer']}",
            *(mean_and_interval(row["protocols"][protocol][metric]) for metric in COLUMNS),
        ]
        for row in rows
    ]
    titles = numbers(*(metric.replace("_", "\n") for metric in COLUMNS))
    return Table(
        [*texts("variant", "gate", "layers"), *titles],
        cells,
        title=f"{protocol}: percent, mean and 95 % interval",
    )


def ablation_split_table(
    rows: Sequence[Mapping[str, Any]], targets: Mapping[str, Any], protocol: str = "generate"
) -> Table | None:
    """Return the table of one protocol by targets seen in training; None if all are alike.

    Args:
        rows: as `ablate` returns them.
        targets: what `measure.target_split.told` says of the split.
        protocol: whose numbers.
    """
    named = {f"{row['variant']}, {row['gate']} gate": row for row in rows}
    return split_table({"methods": named, "targets": targets}, protocol)


def ablation_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV: a line for each variant, gate, protocol and group of targets."""
    lines = []
    for row in rows:
        place = [row[key] for key in _PLACE]
        for protocol, values in row["protocols"].items():
            groups = {"all": values, **row.get("by_target", {}).get(protocol, {})}
            lines += [
                [*place, protocol, group, *_numbers(numbers_of)]
                for group, numbers_of in groups.items()
            ]
    ends = [f"{metric}_{end}" for metric in COLUMNS for end in _ENDS]
    return Table(texts(*_PLACE, "protocol", "targets", "edits", *ends), lines).csv()


def _numbers(values: Mapping[str, Mapping[str, float]]) -> list[Any]:
    """Return how many edits count, and each end of each metric; nothing of one that is not there.

    Only what asks for the target is split by it.
    """
    counts = [value["n"] for value in values.values() if "n" in value]
    ends = [values.get(metric, {}).get(end, "") for metric in COLUMNS for end in _ENDS]
    return [max(counts, default=""), *ends]
