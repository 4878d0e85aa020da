"""Edits that one edited model applies: folded where that pays, and always those that are meant."""

import pytest
import torch
from tiny_editors import hooks_of_ours, picture, request_of, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.method.adapter import CrossAttentionAdapter
from easyedit_dualedit.method.applied import _Folds
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.model.inputs import Query

COSINE = GateConfig("cosine", threshold=0.99)
REQUESTS = [
    request_of(),
    Query("How many circles are there?", picture("green"), "seven"),
    Query("Who painted it?", picture("yellow"), "a child"),
]


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is folded; to be asked after each forward."""
    made: list[int] = []
    real = CrossAttentionAdapter.fold

    def fold(self: CrossAttentionAdapter, edit):
        made.append(edit.keys.shape[2])
        return real(self, edit)

    monkeypatch.setattr(CrossAttentionAdapter, "fold", fold)
    return made


def test_an_edit_is_folded_once_and_again_when_the_adapter_has_changed(
    llava: TinyModel, folds: list[int]
):
    editor = trained_editor(llava, gate="open")
    edited = editor.edited(editor.read(REQUESTS[:1]))
    batch = editor.encoder.encode(REQUESTS[:1])
    with torch.no_grad():
        first = edited(**batch.inputs, layout=batch.layout).logits
        again = edited(**batch.inputs, layout=batch.layout).logits
        assert len(folds) == 2, "one for each adapter"
        assert torch.equal(first, again)
        editor.adapters["text"].output.weight.mul_(2)
        changed = edited(**batch.inputs, layout=batch.layout).logits
        assert len(folds) == 3
        assert not torch.equal(first, changed)
    with_gradients = edited(**batch.inputs, layout=batch.layout).logits
    assert len(folds) == 3, "gradients do not pass what is folded"
    assert with_gradients.requires_grad
    torch.testing.assert_close(with_gradients.detach(), changed, atol=1e-4, rtol=1e-4)


def test_a_long_edit_is_not_folded(llava: TinyModel, folds: list[int]):
    editor = trained_editor(llava, gate="open", signal="all")
    edited = editor.edited(editor.read(REQUESTS[:1]))
    batch = editor.encoder.encode(REQUESTS[:1])
    with torch.no_grad():
        found = edited(**batch.inputs, layout=batch.layout).logits
    assert folds == []
    torch.testing.assert_close(
        edited(**batch.inputs, layout=batch.layout).logits.detach(), found, atol=0, rtol=0
    )


def test_each_query_gets_its_own_edit_folded_or_not(llava: TinyModel, folds: list[int]):
    editor = trained_editor(llava, gate=COSINE)
    edited = editor.edited(editor.read(REQUESTS))
    together = editor.encoder.encode(REQUESTS)
    with torch.no_grad():
        expected = edited(**together.inputs, layout=together.layout).logits
        assert folds == [], "the rows of this batch have different edits"
        for row, request in enumerate(REQUESTS):
            batch = editor.encoder.encode([request])
            alone = edited(**batch.inputs, layout=batch.layout).logits[0]
            real = together.layout.real[row]
            torch.testing.assert_close(alone, expected[row, real], atol=1e-4, rtol=1e-4)
        twice = editor.encoder.encode(REQUESTS[:1] * 2)
        before = len(folds)
        edited(**twice.inputs, layout=twice.layout)
    assert before == 2 * len(REQUESTS) == len(folds), "an edit of all rows is folded, and kept"


def test_no_more_folded_edits_are_kept_than_are_likely_to_serve(
    llava: TinyModel, folds: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_Folds, "_MOST", 2)
    editor = trained_editor(llava, gate=COSINE)
    edited = editor.edited(editor.read(REQUESTS))
    with torch.no_grad():
        for request in REQUESTS + REQUESTS[:1]:
            batch = editor.encoder.encode([request])
            edited(**batch.inputs, layout=batch.layout)
            assert len(edited._applied._folds._held) == 2
    assert len(folds) == 2 * 4


def test_layers_are_hooked_only_where_something_may_change(llava: TinyModel):
    editor = trained_editor(llava, gate=COSINE, text_layer=1, vision_layer=2)
    edited = editor.edited(editor.read(REQUESTS[:1]))
    seen: list[list[str]] = []
    last = editor.backbone.layers[3].register_forward_pre_hook(
        lambda *_: seen.append([name.split(".")[-1] for name in hooks_of_ours(llava.model)])
    )
    other = Query("Where is the star?", None, "left")
    try:
        with torch.no_grad():
            for query in (REQUESTS[0], other):
                batch = editor.encoder.encode([query])
                edited(**batch.inputs, layout=batch.layout)
            assert seen == [["1", "2"], ["1"]]
            seen.clear()
            prompt = editor.encoder.encode([REQUESTS[0]], with_target=False)
            edited.generate(**prompt.inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    finally:
        last.remove()
    layers = [[name for name in names if name.isdigit()] for names in seen]
    assert layers == [["1", "2"], [], []], "decode steps pass as they are"
    assert [len(names) for names in seen] == [3, 1, 1], "the base model's calls alone are seen"
