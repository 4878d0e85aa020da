"""What `ablate` measured, as tables."""

import csv
import io
from typing import Any

from easyedit_dualedit.experiments.ablate import COLUMNS
from easyedit_dualedit.report.ablation import ablation_csv, ablation_table


def row(variant: str, start: float) -> dict[str, Any]:
    values = {
        metric: {"mean": start + place, "low": start + place - 2.0, "high": start + place + 1.0}
        for place, metric in enumerate(COLUMNS)
    }
    other = {metric: dict.fromkeys(("mean", "low", "high"), 0.0) for metric in COLUMNS}
    return {
        "variant": variant,
        "gate": "open",
        "text_layer": 1,
        "vision_layer": 2,
        "protocols": {"visedit": other, "generate": values},
    }


ROWS = [row("both adapters", 20.0), row("signal: all", 40.25)]


def test_the_table_has_a_row_for_each_variant_and_gate():
    table = ablation_table(ROWS)
    assert table.rows[1][:4] == ["signal: all", "open", "1, 2", "40.2 (38.2–41.2)"]
    assert ablation_table(ROWS, "visedit").rows[1][3] == "0.0 (0.0–0.0)"
    lines = table.markdown().splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert all(line.count("|") == len(COLUMNS) + 4 for line in lines)
    assert "| text generality |" in lines[0]


def test_csv_has_a_line_for_each_protocol_too():
    lines = list(csv.DictReader(io.StringIO(ablation_csv(ROWS))))
    assert [line["protocol"] for line in lines] == ["visedit", "generate"] * 2
    assert [float(lines[1][f"text_generality_{end}"]) for end in ("mean", "low", "high")] == [
        21.0,
        19.0,
        22.0,
    ]
    assert (lines[2]["variant"], lines[2]["vision_layer"]) == ("signal: all", "2")
