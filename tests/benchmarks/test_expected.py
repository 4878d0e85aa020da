"""What a training is expected to take: its arithmetic is that which was counted."""

import json
from pathlib import Path

import pytest

from benchmarks.expected import BATCH, FAMILIES, STEPS, Family, hours, table
from easyedit_dualedit.method.config import DualEditConfig

ROOT = Path(__file__).parents[2]
LLAVA = FAMILIES[0]


def test_the_arithmetic_of_a_step_is_what_was_counted():
    path = ROOT / "docs" / "performance" / "llava-1.5-7b-cuda.json"
    counted = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(counted)
    assert all(gflop in text for gflop in ("161870.68", "156997.76", "105126.64"))
    assert BATCH * LLAVA.record_flop(locality=True) == pytest.approx(161.87068e12, rel=0.03)
    frozen = (LLAVA.text_layer + 1) * LLAVA.rows_flop(3, 1, 1)
    pictures = 3 * LLAVA.picture_flop
    assert BATCH * (LLAVA.record_flop(locality=True) - frozen - pictures) == pytest.approx(
        105.12664e12, rel=0.05
    )
    assert BATCH * pictures == pytest.approx(161.87068e12 - 156.99776e12, rel=0.1)
    peaks = counted["peak_mib"]["training, pictures seen before"]
    assert LLAVA.kept_bytes(locality=True) / 2**20 == pytest.approx(
        peaks["of it kept for a backward pass"], rel=0.03
    )
    assert LLAVA.weight_bytes / 2**20 == pytest.approx(peaks["of it weights"], rel=0.03)


def test_layers_and_batches_are_those_of_the_shipped_hyperparameters():
    for family in FAMILIES:
        values = family.shipped
        assert (values["text_layer"], values["vision_layer"]) == (
            family.text_layer,
            family.vision_layer,
        )
        batch = values["batch_size"] * values.get("accumulate_bs", 1)
        assert (batch, values["max_iters"]) == (BATCH, STEPS)
        assert values["width"] == family.width
    assert DualEditConfig.preset("default", text_layer=1, vision_layer=2).word_path


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_shipped_training_fits_into_24_gib(family: Family):
    assert family.held_bytes + family.shipped_bytes <= 24 * 2**30
    # Nothing is recomputed for nothing.
    whole = family.held_bytes + family.kept_bytes(locality=family.trains_locality)
    assert family.recomputes == (whole > 24 * 2**30)


def test_the_guide_has_the_table():
    guide = (ROOT / "docs" / "guide" / "training.md").read_text(encoding="utf-8")
    assert table() in guide, "python -m benchmarks.expected"
    assert hours(LLAVA, "A100") > 3 * hours(LLAVA, "H100")
