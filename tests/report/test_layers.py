"""What `locate` measured, as tables."""

import csv
import io
from typing import Any

from easyedit_dualedit.experiments.layer_probe import ATTENTION, NOISED
from easyedit_dualedit.report.layers import layers_csv, layers_table


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.25, "high": mean + 0.5, "n": 40}


def layer(index: int, *, has_attention: bool) -> dict[str, Any]:
    effects = {
        modality: {"kl": value(index + place / 8), "flips": value(10.0 * place)}
        for place, modality in enumerate(NOISED)
    }
    attention = {part: value(5.0 + place) for place, part in enumerate(ATTENTION)}
    return {"layer": index, **effects} | ({"attention": attention} if has_attention else {})


EFFECTS = {"layers": [layer(0, has_attention=True), layer(3, has_attention=False)]}


def test_the_table_has_a_row_for_each_layer():
    table = layers_table(EFFECTS)
    assert "mean of 40 samples" in table.title
    assert table.rows[0][:3] == ["0", "0.000 (-0.250–0.500)", "0.0 (-0.2–0.5)"]
    assert table.rows[0][-2:] == ["5.0 (4.8–5.5)", "6.0 (5.8–6.5)"]
    assert table.rows[1][-2:] == ["", ""]


def test_csv_has_a_line_for_each_layer_and_modality():
    lines = list(csv.DictReader(io.StringIO(layers_csv(EFFECTS))))
    assert [(line["layer"], line["modality"]) for line in lines] == [
        (layer, modality) for layer in ("0", "3") for modality in NOISED
    ]
    assert [float(lines[1][f"kl_{end}"]) for end in ("mean", "low", "high")] == [
        0.125,
        -0.125,
        0.625,
    ]
    assert [line["attention_mean"] for line in lines] == ["5.0", "6.0", "", "", "", ""]
    assert {line["samples"] for line in lines} == {"40"}
