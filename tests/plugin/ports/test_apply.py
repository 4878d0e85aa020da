"""EasyEdit edits its own ports."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import shared_workplace
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel, tiny_llava
from tiny_ports import (
    easyedit,
    hparams_of,
    image,
    logits,
    needs_ports,
    request,
    samples,
    signals,
)

from easyedit_dualedit.errors import BackboneError, DataError, PromptEndError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.apply import apply_dualedit_to_multimodal_model as apply
from easyedit_dualedit.plugin.apply import end_sequence
from easyedit_dualedit.plugin.ports.edited import PortEdited
from easyedit_dualedit.plugin.ports.model import PortModel
from easyedit_dualedit.plugin.ports.samples import PortSamples

pytestmark = needs_ports


def test_easyedit_measures_an_edit(port: Any, archive: Path) -> None:
    hparams = hparams_of(port, archive)
    evaluate = easyedit("evaluate.multimodal_evaluate")
    tokenizer = PortModel(port).tokenizer.tokenizer
    weights_before = {name: value.clone() for name, value in port.state_dict().items()}

    def measured(model: Any) -> Any:
        return evaluate.compute_multimodal_edit_results(
            model, hparams.model_name, hparams, tokenizer, request(), "cpu"
        )

    before = measured(port)
    edited, weights = apply(port, tokenizer, [request()], hparams)
    assert isinstance(edited, PortEdited)
    assert weights == {}
    after = measured(edited)
    assert set(after) == set(before)
    assert 0 <= float(after["rewrite_acc"]) <= 1
    for name in ("locality_output", "multimodal_locality_output"):
        assert torch.equal(after[name], before[name]), name
    given = evaluate.prepare_multimodal_edit(
        hparams, tokenizer, "blue", request()["prompt"], request()["image"]
    )
    assert not torch.equal(logits(edited, given), logits(port, given))
    accuracy, predicted = evaluate.compute_multimodal_edit_quality(edited, given)
    own = logits(edited, given)[:, :-1].argmax(-1)
    labels = edited(given).labels[:, 1:]
    assert float(accuracy) == float((own == labels)[labels != IGNORED].float().mean())
    assert predicted.shape == tuple(own.shape)
    again = measured(port)
    assert float(again["rewrite_acc"]) == float(before["rewrite_acc"])
    for name, value in port.state_dict().items():
        assert torch.equal(value, weights_before[name]), name


def test_the_image_tensor_of_a_request_is_used_as_it_is(
    port: Any, tiny_one: TinyModel, archive: Path
) -> None:
    hparams = hparams_of(port, archive)
    edited, _ = apply(port, None, [request()], hparams)
    editor = DualEditor.load(tiny_one.model, tiny_one.processor, archive)
    (expected,) = signals(editor, samples(port))
    for layer, states in edited.edits[0].states.items():
        assert torch.equal(states, expected.states[layer])
    (other,) = apply(port, None, [{**request(), "image": image(4)}], hparams)[0].edits
    assert not torch.equal(other.gate_state, expected.gate_state)
    # A picture is read as EasyEdit's processor reads it.
    pixels = tiny_one.processor.pixels(picture())
    (drawn,) = apply(port, None, [{**request(), "image": picture()}], hparams)[0].edits
    (given,) = apply(port, None, [{**request(), "image": pixels}], hparams)[0].edits
    assert torch.equal(drawn.gate_state, given.gate_state)


def test_several_requests_a_sequence_and_a_copy(port: Any, archive: Path) -> None:
    hparams = hparams_of(port, archive)
    blind = {**request("Where is the star?", "top left"), "image": None}
    edited, _ = apply(port, None, [request(), blind], hparams)
    assert len(edited.edits) == 2
    first, _ = apply(port, None, request(), hparams)
    second, _ = apply(port, None, blind, hparams)
    assert [len(first.edits), len(second.edits)] == [1, 2]
    assert first.edited.base_model is second.edited.base_model
    freely, _ = apply(port, None, [request()], hparams_of(port, archive, gate={"kind": "open"}))
    assert freely.edited.base_model is first.edited.base_model
    end_sequence(port)
    assert len(apply(port, None, request(), hparams)[0].edits) == 1
    apart, _ = apply(port, None, [request()], hparams, copy=True)
    assert apart.edited.base_model.port is not port
    assert torch.equal(logits(apart, samples(port)), logits(first, samples(port)))
    copied = copy.deepcopy(port)
    assert len(apply(copied, None, request(), hparams)[0].edits) == 1


def test_bad_requests_and_samples_are_named(port: Any, tiny_one: TinyModel, archive: Path) -> None:
    hparams = hparams_of(port, archive)
    with pytest.raises(DataError, match="no target"):
        apply(port, None, [{**request(), "target": ""}], hparams)
    with pytest.raises(DataError, match=r"\[2, 3, 28, 28\]"):
        apply(port, None, [{**request(), "image": torch.zeros(2, 3, 28, 28)}], hparams)
    with pytest.raises(DataError, match="one picture"):
        apply(port, None, [{**request(), "image": 7}], hparams)
    with pytest.raises(DataError, match="type list"):
        apply(port, None, [{**request(), "image": [image(), image()]}], hparams)
    editor = trained_editor(tiny_one)
    reader = PortSamples.of(editor)
    with pytest.raises(PromptEndError, match="prompts_len"):
        reader.read({**samples(port), "prompts_len": []})
    with pytest.raises(PromptEndError, match="at least 1"):
        reader.read({**samples(port), "prompts_len": [0]})
    with pytest.raises(DataError, match="1 texts and 2 images"):
        reader.read({**samples(port), "image": torch.zeros(2, 3, 28, 28)})
    batch = reader.read(samples(port))
    del batch.inputs["pixel_values"]
    with pytest.raises(DataError, match="placeholders"):
        tiny_one.model(**batch.inputs)
    llava = tiny_llava()
    with pytest.raises(BackboneError, match="PortModel"):
        PortSamples.of(trained_editor(llava))


def test_easyedits_editor_edits_a_port(
    port: Any, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The editor builds its ports from checkpoints; everything after that is its own.
    monkeypatch.setattr(easyedit("trainer.blip2_models"), type(port).__name__, lambda **_: port)
    PortModel(port).tokenizer.tokenizer.save_pretrained(tmp_path / "model")
    workplace = shared_workplace("llava")
    hparams = hparams_of(port, archive, name=str(tmp_path / "model"))
    editor = find_host().package.MultimodalEditor.from_hparams(hparams)
    assert editor.model is port
    metrics, edited, weights = editor.edit(**workplace.edit_arguments((0, 1), full=True))
    assert isinstance(edited, PortEdited)
    assert weights == {}
    for case in metrics:
        for phase in ("pre", "post"):
            for name in ("rewrite_acc", "rephrase_acc", "image_rephrase_acc"):
                assert 0 <= float(case[phase][name]) <= 1
        assert float(case["post"]["locality_acc"]) == 1
    _, running, _ = editor.edit(**workplace.edit_arguments((0, 1), full=True), sequential_edit=True)
    assert len(running.edits) == 2


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of edits that do not take."""
    ours = "easyedit_dualedit.plugin.edit_warnings"
    return [record.getMessage() for record in caplog.records if record.name == ours]


def test_a_warning_tells_of_an_edit_that_a_port_does_not_answer(
    port: Any, archive: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hparams = hparams_of(port, archive)
    asked = request(target="top left")
    apply(port, None, [asked], hparams)
    (line,) = warnings_in(caplog)
    assert "the edit does not take: asked 'What colour is the circle?'" in line
    assert "not 'top left'; the gate is open" in line
    caplog.clear()
    apply(port, None, [asked], hparams_of(port, archive, check_edits=False))
    assert not warnings_in(caplog)
    target = tuple(PortModel(port).tokenizer(" top left")["input_ids"])
    named = "easyedit_dualedit.plugin.edit_warnings.named_tokens"
    monkeypatch.setattr(named, lambda *_: [target])
    apply(port, None, [asked], hparams)
    assert not warnings_in(caplog)
    # What it says instead is the arg-max up to the first token that is not the target's.
    monkeypatch.setattr(named, lambda *_: [(target[0] + 1, *target[1:])])
    apply(port, None, [asked], hparams)
    said = PortModel(port).tokenizer.decode([target[0] + 1]).strip()
    assert f"answers {said!r}, not" in warnings_in(caplog)[0]
