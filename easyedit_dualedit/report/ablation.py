"""What `ablate` measured, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.experiments.ablate import COLUMNS
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts

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


def ablation_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as CSV: a line for each variant, gate and protocol."""
    ends = [(metric, end) for metric in COLUMNS for end in _ENDS]
    lines = [
        [*(row[key] for key in _PLACE), protocol, *(values[metric][end] for metric, end in ends)]
        for row in rows
        for protocol, values in row["protocols"].items()
    ]
    columns = texts(*_PLACE, "protocol", *(f"{metric}_{end}" for metric, end in ends))
    return Table(columns, lines).csv()
