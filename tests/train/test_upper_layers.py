"""The upper layers, run alone, do as whole forwards do: states, their end, and changes."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
import torch
from tiny_editors import request_of, shared, trained_editor
from tiny_models import TinyModel
from torch import Tensor, nn

from easyedit_dualedit.method.active_edits import stacked
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.hooks import LayerEdit, attach, record, replaced
from easyedit_dualedit.train.frozen_part import FrozenPart
from easyedit_dualedit.train.upper_layers import FrozenOutput, head_of, packed, rows_of, trimmed

LAYER = 1
QUERIES = [
    request_of(),
    request_of("Where is the star in the picture?", "top left"),
    request_of(colour="blue"),
    request_of("How many?", "three four"),
]
OWNERS = [0, 0, 2, 0]


def output_of(
    editor: DualEditor, owners: Sequence[Hashable] | None, *, trims: bool = True
) -> FrozenOutput:
    frozen = FrozenPart(editor.encoder, LAYER)
    frozen.shares = owners is not None
    frozen.trims = trims
    return frozen.run(QUERIES, [False] * len(QUERIES), owners)


def sharing_of(every: TinyModel) -> list[int] | None:
    """Return who may share, in a family that can."""
    return None if every.family in ("gemma3", "paligemma", "qwen3.5") else OWNERS


@torch.no_grad()
def whole(editor: DualEditor, layer: int, edits: dict[int, LayerEdit]) -> tuple[Tensor, Tensor]:
    """Return the output of a layer and the logits, in forwards of whole rows."""
    backbone, batch = editor.backbone, editor.encoder.encode(QUERIES)
    with attach(backbone.layers, edits), record(backbone.layers, [layer]) as states:
        logits = backbone.model(**batch.inputs, use_cache=False).logits
    return states[layer], logits


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [3, 1], [2]])
def test_states_are_those_of_whole_forwards(every: TinyModel, rows: list[int]):
    editor = trained_editor(every)
    output = output_of(editor, sharing_of(every))
    real = output.batch.layout.real[rows]
    for layer in (LAYER, LAYER + 1):
        expected = whole(editor, layer, {})[0][rows]
        with torch.no_grad():
            found = output.take(rows).states_at(layer)
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("trims", [True, False])
def test_edited_rows_end_as_whole_forwards_do(every: TinyModel, trims: bool):
    editor = trained_editor(every)
    rows = [0, 1, 3]
    output = output_of(editor, sharing_of(every), trims=trims)
    at = output.batch.target.roll(-1, 1)

    def change(hidden: Tensor) -> Tensor:
        return hidden * 1.5

    expected = whole(editor, LAYER, {LAYER: change, LAYER + 1: change})[1]
    with torch.no_grad():
        given = {LAYER: change, LAYER + 1: change}
        found = head_of(every.model)(output.take(rows).final_states(at[rows], given))
    assert len(found) == int(at[rows].sum())
    torch.testing.assert_close(found, expected[rows][at[rows]], atol=1e-4, rtol=1e-4)


def test_rows_of_one_owner_and_picture_lie_in_one():
    output = output_of(trained_editor(shared("llava")), OWNERS)
    upper = output.take([0, 1, 2, 3])
    assert len(upper.shared.row) == 2
    assert upper.first.tolist() == [3, 2], "the row that stands last in each"
    marks = upper.marked(output.batch.layout.vision)
    assert int(marks.sum()) == 2 * int(output.batch.layout.vision[0].sum())


def test_arguments_of_a_call_are_taken_by_row():
    rows, states = torch.tensor([2, 0]), torch.arange(6.0).view(3, 2)
    assert torch.equal(rows_of("inputs_embeds", states, rows, 3), states[[2, 0]])
    three = torch.arange(18).view(3, 3, 2)
    assert torch.equal(rows_of("position_ids", three, rows, 3), three[:, [2, 0]])
    masks = {"full_attention": states, "sliding_attention": None}
    found = rows_of("attention_mask", masks, rows, 3)
    assert torch.equal(found["full_attention"], states[[2, 0]])
    assert found["sliding_attention"] is None
    for name, value in (("cache_position", torch.arange(3)), ("use_cache", False)):
        assert rows_of(name, value, rows, 3) is value
    assert rows_of("deepstack_visual_embeds", [states], rows, 3) is None
    assert torch.equal(rows_of("rotary", torch.ones(1, 2), rows, 3), torch.ones(1, 2))


def test_states_are_packed_row_by_row():
    torch.manual_seed(0)
    states = torch.randn(3, 6, 4)
    states[0, 0] = math.nan  # at padding, say
    at = torch.tensor([[0, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1]]).bool()
    values, mask = packed(states, at)
    expected, real = stacked([row[which] for row, which in zip(states, at, strict=True)])
    torch.testing.assert_close(values, expected, rtol=0, atol=0)
    assert torch.equal(mask, real) and mask.sum(1).tolist() == [2, 0, 4]


def test_a_trimmed_layer_runs_only_where_it_is_read_and_is_right_there(llava: TinyModel):
    editor = trained_editor(llava)
    batch = editor.encoder.encode([request_of()])
    layers: Any = editor.backbone.layers
    with torch.no_grad(), record(layers, [2], stop=True) as whole:
        llava.model(**batch.inputs, use_cache=False)
    index = batch.target.flatten().nonzero()[:, 0]
    seen: list[int] = []

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[-2])

    hook = layers[2].mlp.gate_proj.register_forward_pre_hook(read)
    try:
        with (
            torch.no_grad(),
            record(layers, [2], stop=True) as states,
            replaced(layers[2], trimmed(layers[2], index)),
        ):
            llava.model(**batch.inputs, use_cache=False)
    finally:
        hook.remove()
    assert seen == [len(index)] == [int(batch.target.sum())]
    torch.testing.assert_close(states[2][batch.target], whole[2][batch.target])
