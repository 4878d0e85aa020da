"""What always holds, for a video, two pictures, a picture and text mixed in one batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_editors import (
    entering,
    hooks_of_ours,
    shared,
    silence,
    tiny_config,
    trained_editor,
)
from tiny_models import TinyModel
from tiny_videos import WATCHING, mixed_queries, video_of

from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query

VIDEO, PICTURES, PICTURE, TEXT = mixed_queries()
OTHER_VIDEO = Query(VIDEO.prompt, video_of("yellow", "yellow", "red", "red"), "red")


@pytest.fixture(scope="module", params=WATCHING)
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """The model that a test runs on."""
    return shared(request.param)


def logits(model: Any, batch: Any, **extra: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(**batch.inputs, **extra).logits
    return output


def test_a_closed_gate_is_bit_identical(tiny: TinyModel):
    editor = trained_editor(tiny)
    batch = editor.encoder.encode(mixed_queries())
    closed = editor.gate.with_config(GateConfig("cosine", 1.0))
    edited = editor.edited(editor.read([Query("Who is this?", None, "one")]), gate=closed)
    assert not edited.route(**batch.inputs).is_open.any()
    assert torch.equal(logits(tiny.model, batch), logits(edited, batch))


def test_requests_of_several_lengths_are_read_in_one_call(tiny: TinyModel):
    editor = trained_editor(tiny)
    longer = Query("What moves?", video_of(*["red", "blue"] * 3), "blue circle")
    requests = [VIDEO, longer, PICTURE, OTHER_VIDEO, TEXT]
    together = editor.read(requests)
    assert [signal.request for signal in together] == requests
    for request, signal in zip(requests, together, strict=True):
        (alone,) = editor.read([request])
        assert signal.states.keys() == alone.states.keys()
        for layer, states in alone.states.items():
            torch.testing.assert_close(signal.states[layer], states, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asked", [VIDEO, PICTURES, TEXT], ids=["video", "pictures", "text"])
def test_an_open_gate_changes_the_answer(tiny: TinyModel, asked: Query):
    editor = trained_editor(tiny)
    batch = editor.encoder.encode([asked])
    edited = editor.edited(editor.read([asked]))
    assert bool(edited.route(**batch.inputs).is_open.all())
    assert not torch.equal(logits(tiny.model, batch), logits(edited, batch))
    assert not hooks_of_ours(tiny.model)


def test_no_edit_and_undo_are_bit_identical(tiny: TinyModel):
    editor = trained_editor(tiny)
    batch = editor.encoder.encode(mixed_queries())
    before = logits(tiny.model, batch)
    assert torch.equal(before, logits(editor.edited([]), batch))
    edited = editor.edited(editor.read(mixed_queries()), gate=editor.open_gate())
    assert not torch.equal(before, logits(edited, batch))
    assert torch.equal(before, logits(tiny.model, batch))


def test_an_untrained_adapter_changes_nothing(tiny: TinyModel):
    editor = DualEditor(tiny.model, tiny.processor, tiny_config())
    edited = editor.edited(editor.read(mixed_queries()), gate=editor.open_gate())
    batch = editor.encoder.encode(mixed_queries())
    assert torch.equal(logits(tiny.model, batch), logits(edited, batch))


def test_the_target_changes_nothing_before_it(tiny: TinyModel):
    """Of each row the prompt's logits and the edit that applies are the same whatever follows."""
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.5})
    edited = editor.edited(editor.read(mixed_queries()))
    prompts, routings = [], []
    for target in ("blue", "green yellow top"):
        queries = [replace(query, target=target) for query in mixed_queries()]
        batch = editor.encoder.encode(queries, padding_side="right")
        routings.append(edited.route(**batch.inputs).edit_index)
        rows = zip(logits(edited, batch), batch.layout.gate.tolist(), strict=True)
        prompts.append(torch.cat([row[: end + 1] for row, end in rows]))
    assert torch.equal(*routings) and bool((routings[0] >= 0).all())
    torch.testing.assert_close(*prompts, atol=1e-4, rtol=1e-4)


def test_teacher_forcing_equals_generation(tiny: TinyModel):
    """Answers that are fed in, row by row of a mixed batch, are those that `generate` gives."""
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([VIDEO, TEXT]), gate=editor.open_gate())
    batch = editor.encoder.encode(mixed_queries(), with_target=False)
    count = 3
    options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": -1}
    tokens = edited.generate(**batch.inputs, **options)
    assert not torch.equal(tokens, tiny.model.generate(**batch.inputs, **options))
    answer = tokens[:, -count:]
    inputs = dict(batch.inputs, input_ids=tokens)
    for name, kind in (
        ("attention_mask", 1),
        ("token_type_ids", editor.backbone.family.answer_token_type),
        ("mm_token_type_ids", 0),
    ):
        if name in inputs:
            more = torch.full_like(answer, kind).to(inputs[name].dtype)
            inputs[name] = torch.cat([inputs[name], more], 1)
    labels = torch.full_like(tokens, -100)
    labels[:, -count:] = answer
    with torch.no_grad():
        chain = edited(**inputs, labels=labels).logits.argmax(-1)
    assert torch.equal(chain[:, -count - 1 : -1], answer)


def test_edits_read_in_a_batch_equal_edits_read_alone(tiny: TinyModel):
    editor = trained_editor(tiny)
    requests = mixed_queries()
    for request, signal in zip(requests, editor.read(requests), strict=True):
        (alone,) = editor.read([request])
        torch.testing.assert_close(signal.gate_state, alone.gate_state, atol=2e-4, rtol=2e-4)
        for layer, states in alone.states.items():
            torch.testing.assert_close(signal.states[layer], states, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_edited_batch_equals_its_rows(tiny: TinyModel, side: str):
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([VIDEO, TEXT]), gate=editor.open_gate())
    queries = mixed_queries()
    batch = editor.encoder.encode(queries, padding_side=side)
    together = logits(edited, batch)
    for row, query in enumerate(queries):
        expected = logits(edited, editor.encoder.encode([query]))[0]
        got = together[row, batch.layout.real[row]]
        torch.testing.assert_close(got, expected, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("layer", [1, 2])
def test_only_the_masked_positions_change(tiny: TinyModel, layer: int):
    """At text alone the vision adapter changes nothing; of a video every token is vision."""
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([VIDEO]), gate=editor.open_gate())
    batch = editor.encoder.encode(mixed_queries())
    with torch.no_grad():
        silence(editor.adapters["vision" if layer == 1 else "text"])
    following = editor.backbone.layers[layer + 1]
    plain, seen = (entering(following, model, batch) for model in (tiny.model, edited))
    text = batch.layout.text | batch.layout.answer
    mask = text if layer == 1 else batch.layout.vision
    assert torch.equal((seen != plain).any(-1), mask)


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_in_a_mixed_batch_equals_generation_alone(tiny: TinyModel, beams: int):
    editor = trained_editor(tiny)
    edited = editor.edited(editor.read([VIDEO]))
    queries = mixed_queries()
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": beams}
    batch = editor.encoder.encode(queries, with_target=False)
    together = edited.generate(**batch.inputs, **options)
    width = batch.inputs["input_ids"].shape[1]
    for row, query in enumerate(queries):
        alone = editor.encoder.encode([query], with_target=False)
        expected = edited.generate(**alone.inputs, **options)
        new = expected[0, alone.inputs["input_ids"].shape[1] :]
        assert torch.equal(together[row, width : width + len(new)], new)


def test_the_gate_reads_what_the_video_shows(tiny: TinyModel):
    """The mean over the tokens of a video is part of what an edit is known by."""
    editor = trained_editor(tiny)
    own, other = editor.read([VIDEO, OTHER_VIDEO])
    assert not torch.allclose(own.vision_state, other.vision_state, atol=1e-3)
