"""What `ablate` measured, as tables."""

import csv
import io
from typing import Any

from easyedit_dualedit.experiments.ablate import COLUMNS
from easyedit_dualedit.report.ablation import (
    ablation_csv,
    ablation_split_table,
    ablation_table,
)


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


def split_rows() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    number = {"mean": 30.0, "low": 20.0, "high": 40.0, "n": 3}
    groups = {
        group: {"reliability": {**number, "n": n}} for group, n in (("seen", 3), ("unseen", 9))
    }
    rows = [{**one, "by_target": {"generate": groups}} for one in ROWS]
    return rows, {"source": "a test", "seen": 3, "unseen": 9, "new_word": 0}


def test_variants_are_split_by_what_their_training_saw():
    rows, targets = split_rows()
    table = ablation_split_table(rows, targets)
    assert table is not None
    assert [row[:4] for row in table.rows][1:3] == [
        ["seen in training", "3", "signal: all, open gate", "30.0 (20.0–40.0)"],
        ["never seen as a whole", "9", "both adapters, open gate", "30.0 (20.0–40.0)"],
    ]
    assert ablation_split_table(ROWS, {"absent": "why"}) is None
    lines = list(csv.DictReader(io.StringIO(ablation_csv(rows))))
    found = [line for line in lines if line["targets"] == "unseen"]
    assert [(line["protocol"], line["edits"]) for line in found] == [("generate", "9")] * 2
    assert (found[0]["reliability_mean"], found[0]["text_locality_mean"]) == ("30.0", "")
    assert {line["targets"] for line in lines} == {"all", "seen", "unseen"}


def test_csv_has_a_line_for_each_protocol_too():
    lines = list(csv.DictReader(io.StringIO(ablation_csv(ROWS))))
    assert [line["protocol"] for line in lines] == ["visedit", "generate"] * 2
    assert [float(lines[1][f"text_generality_{end}"]) for end in ("mean", "low", "high")] == [
        21.0,
        19.0,
        22.0,
    ]
    assert (lines[2]["variant"], lines[2]["vision_layer"]) == ("signal: all", "2")
