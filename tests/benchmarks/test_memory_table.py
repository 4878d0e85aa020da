"""What training, gate and evaluation take of a GPU at 7B size, counted tensor by tensor."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from benchmarks.memory_table import (
    BOUND,
    FAMILIES,
    GIB,
    Family,
    Work,
    counted_attention,
    peaks,
    taken_by_stages,
)
from benchmarks.subject import Shapes, editor_of, records_of
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.measure.evaluation import evaluate_together
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.train.config import CACHE_BYTES, TrainingConfig
from easyedit_dualedit.train.gate_reading import GateReader
from easyedit_dualedit.train.step import TrainingStep

_BESIDES = 0.6 * GIB + 2 * CACHE_BYTES
"""Adapters with Adam's moments, and what a training keeps between steps."""


def test_tensors_count_for_as_long_as_they_live_and_views_do_not():
    weight = torch.zeros(100, 100)
    with LiveBytes([weight]) as live:
        made = weight.t() + 1
        assert live.now == 40_000
        part = made[:10]
        del made
        assert live.now == 40_000, "a part keeps all of it"
        del part
        assert live.now == 0 and live.peak == 40_000
        torch.ones(1000, device="meta", dtype=torch.bfloat16)
    assert live.peak == 40_000


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_7b_model_fits_into_24_gib(family: Family):
    found = peaks(family)
    assert 13 * GIB < found["weights"] < 16 * GIB
    assert found["rows"] >= (8 if family.frames is None else 1)
    stages = {n: v for n, v in found.items() if n.startswith(("pict", "eval", "gate"))}
    assert len(stages) == 4 and max(stages.values()) <= BOUND
    # With the batch and the recomputation of its shipped YAML.
    assert found["train"] + _BESIDES <= BOUND
    # A batch of 4 is packed to it, whatever the model.
    assert found["train"] <= found["train, 4 records, as packed"] + _BESIDES <= BOUND
    # Rows are counted in tokens: what passes the vision tower for them never takes the most.
    assert found["pictures"] < found["train"]
    # The budget is used, and not only kept; one video of 64 frames is too long for two.
    assert found["evaluate, free answers"] > found["weights"] + 2 * GIB


ROWS = 4
RECORDS = 2

WIDE = Shapes(
    hidden=512,
    inner=1376,
    layers=8,
    tower_layers=2,
    text_layer=2,
    vision_layer=3,
    width=256,
)
"""Wide enough that states of a picture take more than its pixels, as at 7B."""


@pytest.fixture(scope="module")
def wide() -> DualEditor:
    editor = editor_of(WIDE)
    editor.backbone.model.set_attn_implementation("sdpa")
    return editor


def taken_by(editor: DualEditor, work: Callable[[], Any]) -> int:
    known = (*editor.backbone.model.parameters(), *editor.backbone.model.buffers())
    with LiveBytes([*known, *editor.adapters.parameters()]) as live:
        work()
    return live.peak


def counted(editor: DualEditor, *, recomputes: bool = False) -> dict[str, int]:
    """Return what the table counts for the editor's model."""
    model: Any = copy.deepcopy(editor.backbone.model).to("meta")
    model.set_attn_implementation(counted_attention())
    family = Family("wide", "", lambda: model, WIDE.image_tokens, 1, WIDE.side)
    training = {
        "text_layer": WIDE.text_layer,
        "cloc": 1.0,
        "checkpoint_activations": recomputes,
    }
    work = Work(ROWS, ROWS, RECORDS, RECORDS)
    return taken_by_stages(Backbone.of(model), family, training, work)


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_training_step_takes_what_is_counted(wide: DualEditor, recomputes: bool):
    config = TrainingConfig(batch_size=RECORDS, checkpoint_activations=recomputes)
    step = TrainingStep.within(wide, config)
    first, *others = records_of(1 + RECORDS)

    def train(records: list[Record]) -> None:
        step.losses(records, config).total.backward()
        wide.adapters.zero_grad(set_to_none=True)

    train([first])  # compares itself with whole forwards
    found = taken_by(wide, lambda: train(others))
    assert 0.6 < found / counted(wide, recomputes=recomputes)["train"] < 1.0


def test_an_evaluation_and_the_gate_s_reading_take_what_is_counted(wide: DualEditor):
    expected = counted(wide)
    first, *records = records_of(4)
    tokens = ROWS * (WIDE.image_tokens + 48)
    panel = Panel(wide.encoder, RowBudget(tokens))

    def evaluate(records: list[Record]) -> None:
        makers = {"edited": lambda record: wide.edited(wide.read([record.request]))}
        evaluate_together(records, wide.encoder, makers, panel=panel)

    evaluate([first])
    found = taken_by(wide, lambda: evaluate(records))
    assert 0.8 < found / expected["evaluate, free answers"] < 1.25
    assert expected["evaluate, answers fed in"] < expected["evaluate, free answers"]

    reader = GateReader(wide, batch_tokens=tokens)
    reader.read([first.request, first.image_locality])
    asked = [query for record in records for query in record.queries if query.pictures]
    found = taken_by(wide, lambda: reader.read(asked))
    # Pixels and features of pictures are there as well as the rows that show them.
    assert expected["gate"] < found < expected["gate"] + expected["pictures"]
