"""Where an answer looks: right places on the testbed, and a plain reason where it is not known."""

import pytest
import torch
from PIL import Image
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.app import attention_map
from easyedit_dualedit.app.attention_map import NO_PLACES, NO_WEIGHTS, AttentionMap
from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.testbed import Scene, SceneObject, render

NOT_SHOWN = {
    "blip2": NO_WEIGHTS,
    # The tiny ones of these families have a single image token.
    "gemma3": NO_PLACES,
    "idefics3": NO_PLACES,
    "smolvlm": NO_PLACES,
}
"""Family -> why nothing is shown."""


@pytest.fixture
def question(examples: list[Trial]) -> Query:
    return examples[0].query()


def test_it_is_a_share_of_each_place(shared_editor: SharedEditor, question: Query):
    found = shared_editor.attention(EditMemory(shared_editor.editor), question, "top left")
    assert isinstance(found, AttentionMap)
    assert found.grid.shape == (3, 3)
    assert found.grid.sum() == pytest.approx(1)
    assert 0 < found.share < 1
    assert "of 3" in found.told()


def test_the_model_is_left_as_it_was(shared_editor: SharedEditor, question: Query):
    model = shared_editor.editor.backbone.model
    before = {
        name: getattr(module.config, "_attn_implementation", None)
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }
    shared_editor.attention(EditMemory(shared_editor.editor), question, "top left")
    after = {
        name: getattr(module.config, "_attn_implementation", None)
        for name, module in model.named_modules()
        if hasattr(module, "config")
    }
    assert after == before and "eager" not in after.values()


def test_an_edit_changes_where_the_answer_looks(
    shared_editor: SharedEditor, examples: list[Trial], question: Query
):
    memory = EditMemory(shared_editor.editor)
    plain = shared_editor.attention(memory, question, "top left")
    memory.add(examples[0].request())
    edited = shared_editor.attention(memory, question, "top left")
    assert isinstance(plain, AttentionMap) and isinstance(edited, AttentionMap)
    assert not torch.allclose(plain.grid, edited.grid)


@pytest.mark.parametrize("cell", [0, 4, 5, 7])
def test_places_of_the_grid_are_places_of_the_picture(shared_editor: SharedEditor, cell: int):
    """The image tokens that a thing in one cell changes most are those of that cell."""
    encoder = shared_editor.editor.encoder
    filler = SceneObject(3, "star", "white")
    scenes = [Scene((filler,)), Scene(tuple(sorted((filler, SceneObject(cell, "square", "red")))))]
    batch = encoder.encode([Query("What is it?", render(scene, 1)) for scene in scenes])
    model = encoder.backbone.model
    with torch.no_grad(), record(encoder.backbone.layers, [0], stop=True) as states:
        model(**batch.inputs, use_cache=False)
    without, within = states[0][batch.layout.vision].view(2, -1, states[0].shape[-1])
    change = (without - within).norm(dim=-1)
    grid = attention_map._grid_of(change, encoder, batch.inputs)
    assert grid is not None and int(grid.argmax()) == cell


def test_every_family_shows_it_or_says_why_not(every: TinyModel):
    editor = trained_editor(every)
    edited = editor.edit(picture(), "What is it?", "red")
    for model in (every.model, edited):
        found = AttentionMap.of(editor.encoder, model, Query("What is it?", picture()), "red")
        if every.family in NOT_SHOWN:
            assert found == NOT_SHOWN[every.family]
        else:
            assert isinstance(found, AttentionMap)
            assert found.grid.sum() == pytest.approx(1, abs=1e-4)


def test_without_a_picture_or_an_answer_there_is_nothing_to_show(
    shared_editor: SharedEditor, question: Query
):
    memory = EditMemory(shared_editor.editor)
    assert shared_editor.attention(memory, Query("Who?"), "x") == "The question shows no picture."
    assert shared_editor.attention(memory, question, " ") == "The model has said nothing."


def test_the_overlay_is_reddest_where_it_looks_most():
    found = AttentionMap(torch.tensor([[0.0, 0.0], [0.7, 0.3]]), 0.5)
    shown = found.over(Image.new("RGB", (20, 10), "blue"))
    assert shown.size == (384, 192)
    reds = [shown.getpixel(place)[0] for place in ((90, 50), (90, 150), (290, 150))]
    assert reds[1] > reds[2] > reds[0]


def test_a_cropped_picture_is_coloured_in_its_middle_alone():
    found = AttentionMap(torch.tensor([[1.0]]), 0.5, is_cropped=True)
    shown = found.over(Image.new("RGB", (40, 20), "blue"))
    assert shown.getpixel((20, 90)) != shown.getpixel((190, 90))
