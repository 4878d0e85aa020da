"""The editor: what it reads of a request, many edits together, and what it refuses."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, tiny_config, trained_editor
from tiny_models import LAYERS, TinyModel, tiny_llava
from torch import Tensor

from easyedit_dualedit.errors import (
    ArchiveError,
    BackboneError,
    CalibrationError,
    ConfigError,
    DataError,
    LayerError,
)
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.config import DualEditConfig, GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.model_card import hub_id_of
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import NO_WORD, Query

OTHER = Query("How many squares are there?", picture("blue"), "three four")
THIRD = Query("Where is the star?", None, "top left bottom right")
OUTSIDE = Query("a photo of a red circle and a blue square", picture("yellow"))


def logits(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**inputs).logits
    return result


@pytest.mark.parametrize("name", ["text_layer", "vision_layer"])
def test_a_layer_that_does_not_exist_is_refused_by_name(llava: TinyModel, name: str):
    with pytest.raises(LayerError, match=rf"{name} = {LAYERS}, .*{LAYERS} decoder layers \(0-3\)"):
        DualEditor(llava.model, llava.processor, tiny_config(**{name: LAYERS}))


def test_models_and_processors_that_do_not_answer_are_refused(llava: TinyModel):
    with pytest.raises(BackboneError, match="Linear does not say where its decoder layers are"):
        DualEditor(torch.nn.Linear(2, 2), llava.processor, tiny_config())
    with pytest.raises(BackboneError, match="does not say where a prompt ends"):
        DualEditor(llava.model, llava.processor.tokenizer, tiny_config())


def test_adapters_stay_float32_where_float16_is_asked(llava: TinyModel):
    """Products of some tokens' states pass what float16 can hold."""
    editor = trained_editor(llava).half()
    assert {weight.dtype for weight in editor.adapters.parameters()} == {torch.float32}
    assert {weight.dtype for weight in editor.gate.projection.parameters()} == {torch.float16}
    half = trained_editor(llava).to(torch.bfloat16)
    assert {weight.dtype for weight in half.adapters.parameters()} == {torch.bfloat16}


def test_an_editor_owns_adapters_and_gate_alone(llava: TinyModel):
    editor = DualEditor(llava.model, llava.processor, tiny_config())
    assert {name.split(".")[0] for name in editor.state_dict()} == {"adapters", "gate"}
    training = llava.model.training
    editor.train()
    editor.requires_grad_(False)
    assert llava.model.training == training
    assert all(parameter.requires_grad for parameter in llava.model.parameters())


@pytest.mark.parametrize("signal", ["target", "prompt+target", "all"])
@pytest.mark.parametrize("layers", [(1, 2), (2, 1), (2, 2)], ids=str)
def test_signals_are_the_states_of_the_unedited_model(
    tiny: TinyModel, signal: str, layers: tuple[int, int]
):
    editor = trained_editor(tiny, signal=signal, text_layer=layers[0], vision_layer=layers[1])
    requests = [request_of(), OTHER, THIRD]
    batch = editor.encoder.encode(requests)
    with torch.no_grad(), record(editor.backbone.layers, range(LAYERS)) as states:
        tiny.model(**batch.inputs)
    signals = editor.read(requests)
    for row, (request, read) in enumerate(zip(requests, signals, strict=True)):
        before = batch.target[row].roll(-1)  # with the last prompt token, but not the last word
        carried = batch.target[row] | before
        mask = {
            "target": carried,
            "prompt+target": carried | batch.layout.text[row],
            "all": batch.layout.real[row],
        }[signal]
        ids = batch.inputs["input_ids"][row]
        words = [*ids[batch.target[row]].tolist(), editor.encoder.tokenizer.eos_token_id]
        assert read.words[read.words != NO_WORD].tolist() == words
        assert (read.words != NO_WORD).equal(carried[mask])
        assert read.request is request
        assert set(read.states) == set(layers)
        for layer, held in read.states.items():
            assert torch.equal(held, states[layer][row, mask])
        text_states = states[layers[0]][row]
        assert torch.equal(read.gate_state, text_states[batch.layout.gate[row]])
        assert torch.equal(read.last_state, text_states[batch.layout.last[row]])
        assert not read.gate_state.requires_grad


def test_the_gate_state_does_not_depend_on_the_target(tiny: TinyModel):
    editor = trained_editor(tiny)
    (short,) = editor.read([request_of(target="blue")])
    (long,) = editor.read([request_of(target="top left bottom right")])
    torch.testing.assert_close(short.gate_state, long.gate_state, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(short.last_state, long.last_state, atol=1e-2)


def test_requests_without_target_are_refused(llava: TinyModel):
    editor = trained_editor(llava)
    with pytest.raises(DataError, match="the request 'Who.' has no target; give the answer"):
        editor.read([request_of(), Query("Who?", picture())])
    with pytest.raises(DataError, match="no queries to encode"):
        editor.read([])


def test_a_query_where_a_list_is_expected_is_refused(llava: TinyModel):
    editor, request = trained_editor(llava), request_of()
    with pytest.raises(DataError, match="stands alone; give a list of requests"):
        editor.read(request)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="stands alone; give a list of queries"):
        editor.encoder.encode(request)  # type: ignore[arg-type]
    (signal,) = editor.read([request])
    with pytest.raises(DataError, match="stands alone; give a list of signals"):
        editor.edited(signal)  # type: ignore[arg-type]


def test_a_batch_without_targets_carries_no_edit(llava: TinyModel):
    editor = trained_editor(llava)
    batch = editor.encoder.encode([request_of(), OTHER], with_target=False)
    with pytest.raises(DataError, match="target"):
        editor.read_batch(batch)


@pytest.mark.parametrize(
    ("prompt", "target", "message"),
    [("", "blue", "prompt = ''"), ("Who?", "", "target = ''"), ("Who?", None, "has no target")],
)
def test_edits_without_prompt_or_target_are_refused(
    llava: TinyModel, prompt: str, target: Any, message: str
):
    with pytest.raises(DataError, match=message):
        trained_editor(llava).edit(None, prompt, target)


def test_a_picture_may_be_a_file_a_picture_or_absent(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    path = tmp_path / "circle.png"
    picture().save(path)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    answers = []
    for image in (picture(), path, None):
        edited = editor.edit(image, "What colour is the circle?", "blue")
        assert len(edited.edits) == 1 and edited.edits[0].request.image is image
        answers.append(logits(editor.edited(edited.edits, gate=editor.open_gate()), inputs))
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2], atol=1e-3)
    with pytest.raises(DataError, match="no picture at"):
        editor.edit(tmp_path / "absent.png", "Who?", "blue")


def test_an_edit_is_made_without_a_threshold_but_not_used(llava: TinyModel):
    editor = trained_editor(llava, gate="centred")
    edited = editor.edit(None, "Who?", "blue")
    with pytest.raises(CalibrationError, match="centred gate has no threshold"):
        edited(**editor.encoder.encode([Query("Who?")]).inputs)


def test_another_gate_decides_instead_of_the_editors_own(llava: TinyModel):
    editor = trained_editor(llava, gate={"kind": "cosine", "threshold": 1.0})
    signals = editor.read([request_of()])
    inputs = editor.encoder.encode([OUTSIDE]).inputs
    assert not editor.edited(signals).route(**inputs).is_open.any()
    opened = editor.edited(signals, gate=editor.open_gate())
    assert bool(opened.route(**inputs).is_open.all())
    assert editor.gate.config == GateConfig("cosine", 1.0)
    shut = editor.edited(signals)
    for given in (GateConfig("open"), "open", {"kind": "open"}):
        assert bool(editor.edited(signals, gate=given).route(**inputs).is_open.all())
        assert bool(shut.with_gate(given).route(**inputs).is_open.all())
    for make in (shut.with_gate, lambda gate: editor.edited(signals, gate=gate)):
        with pytest.raises(ConfigError, match="gate = 0.8"):
            make(0.8)


def test_an_edited_model_is_refused_at_once(llava: TinyModel):
    editor = trained_editor(llava)
    edited = editor.edited(editor.read([request_of()]))
    with pytest.raises(BackboneError, match="give its base_model"):
        DualEditor(edited, llava.processor, editor.config)
    assert DualEditor(edited.base_model, llava.processor, editor.config).backbone.layers


def sequence(editor: DualEditor) -> list[EditSignal]:
    """Read three edits one after another, each longer than the one before."""
    return [editor.read([request])[0] for request in (request_of(), OTHER, THIRD)]


@pytest.mark.parametrize("layers", [(1, 2), (2, 1)], ids=["below", "above"])
def test_later_edits_leave_the_first_and_closed_queries(every: TinyModel, layers: tuple[int, int]):
    editor = trained_editor(
        every,
        text_layer=layers[0],
        vision_layer=layers[1],
        gate={"kind": "cosine", "threshold": 0.9999},
    )
    signals = sequence(editor)
    first = editor.encoder.encode([request_of()], with_target=False).inputs
    closed = editor.encoder.encode([OUTSIDE]).inputs
    plain = logits(every.model, closed)
    alone = logits(editor.edited(signals[:1]), first)
    assert not torch.equal(alone, logits(every.model, first))
    for count in (1, 2, 3):
        edited = editor.edited(signals[:count])
        assert len(edited.edits) == count
        assert edited.route(**first).edit_index.tolist() == [0]
        torch.testing.assert_close(logits(edited, first), alone, atol=1e-5, rtol=1e-5)
        assert torch.equal(logits(edited, closed), plain)


def test_each_of_many_edits_answers_its_own_request(tiny: TinyModel):
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.9999})
    signals = sequence(editor)
    edited = editor.edited(signals)
    requests = [THIRD, request_of(), OTHER, OUTSIDE]
    batch = editor.encoder.encode(requests, with_target=False)
    assert edited.route(**batch.inputs).edit_index.tolist() == [2, 0, 1, -1]
    together = logits(edited, batch.inputs)
    for row, edits in enumerate([signals[2:], signals[:1], signals[1:2], []]):
        inputs = editor.encoder.encode([requests[row]], with_target=False).inputs
        alone = logits(editor.edited(edits), inputs)[0]
        real = batch.layout.real[row]
        torch.testing.assert_close(together[row, real], alone, atol=1e-4, rtol=1e-4)


def test_removing_an_edit_restores_what_was_before(every: TinyModel):
    editor = trained_editor(every)
    signals = sequence(editor)
    inputs = editor.encoder.encode([request_of(), OTHER], with_target=False).inputs
    before = logits(editor.edited([signals[0], signals[2]]), inputs)
    with_second = logits(editor.edited(signals), inputs)
    assert not torch.equal(before, with_second)
    assert torch.equal(logits(editor.edited([signals[0], signals[2]]), inputs), before)


def test_the_newest_edit_of_a_request_wins(llava: TinyModel):
    editor = trained_editor(llava)
    chosen = []
    for prompt in ("What colour is the circle?", "How many squares?", "Where is the star?"):
        for colour in ("red", "green"):
            signals = [
                editor.read([request_of(prompt, target, colour)])[0]
                for target in ("blue", "top left bottom right")
            ]
            query = editor.encoder.encode([Query(prompt, picture(colour))])
            chosen += editor.edited(signals).route(**query.inputs).edit_index.tolist()
    assert chosen == [1] * 6


def test_the_newest_edit_of_a_request_wins_where_states_differ_by_rounding(llava: TinyModel):
    editor = trained_editor(llava)
    older, other, newer = editor.read(
        [
            request_of("Where is the star?", "blue"),
            request_of("How many squares?", "two", "green"),
            request_of("Where is the star?", "green"),
        ]
    )
    further = newer.gate_state + 0.02 * newer.gate_state.std() * torch.randn(len(newer.gate_state))
    newer = dataclasses.replace(newer, gate_state=further)
    asked = [each.request for each in (older, other) if each.request is not None]
    batch = editor.encoder.encode(asked, with_target=False)

    def chosen(signals: list[EditSignal]) -> list[int]:
        routing = editor.edited(signals).route(layout=batch.layout, **batch.inputs)
        return routing.edit_index.tolist()

    assert chosen([older, other, newer]) == [2, 1]
    unknown = dataclasses.replace(newer, request=None)
    assert chosen([older, other, unknown]) == [0, 1]


def test_edits_stay_when_the_files_of_their_pictures_go(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    path = tmp_path / "red.png"
    picture("red").save(path)
    signals = editor.read([Query("Where is the star?", path, answer) for answer in ("a", "b")])
    path.unlink()
    assert len(editor.edited(signals).edits) == 2


def test_an_edit_keeps_nothing_of_other_tokens(llava: TinyModel):
    (signal,) = trained_editor(llava).read([request_of()])
    vectors = (signal.gate_state, signal.last_state, signal.vision_state, *signal.states.values())
    for vector in vectors:
        assert vector.untyped_storage().nbytes() == vector.numel() * vector.element_size()


def test_the_last_prompt_token_is_left_out_where_that_is_asked(llava: TinyModel):
    for included in (True, False):
        editor = trained_editor(llava, last_prompt_token=included)
        layout = editor.encoder.encode([request_of()]).layout
        assert bool(layout.text[0, layout.gate[0]]) is included


def test_a_dispatched_model_is_edited_as_any_other(llava: TinyModel):
    accelerate = pytest.importorskip("accelerate")
    editor = trained_editor(llava)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    expected = logits(editor.edited(editor.read([request_of()])), inputs)
    other = tiny_llava()
    accelerate.dispatch_model(
        other.model,
        {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu"}
        | {"model.language_model": "cpu", "lm_head": "cpu"},
        main_device="cpu",
        force_hooks=True,
    )
    dispatched = trained_editor(other)
    dispatched.load_state_dict(editor.state_dict())
    edited = dispatched.edited(dispatched.read([request_of()]))
    assert torch.equal(logits(edited, inputs), expected)


def test_an_editor_is_saved_and_loaded_as_others_on_the_hub_are(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    editor.save_pretrained(tmp_path / "adapters")
    names = {path.name for path in (tmp_path / "adapters").iterdir()}
    assert names == {"README.md", "adapters.safetensors", "config.json"}
    loaded = DualEditor.from_pretrained(
        tmp_path / "adapters", model=llava.model, processor=llava.processor
    )
    assert loaded.config == editor.config
    for name, value in editor.state_dict().items():
        exact = {"rtol": 0, "atol": 0, "equal_nan": True}  # no threshold is not a number
        torch.testing.assert_close(loaded.state_dict()[name], value, **exact)
    other = GateConfig(kind="open")
    reopened = DualEditor.from_pretrained(
        tmp_path / "adapters", model=llava.model, processor=llava.processor, gate=other
    )
    assert reopened.gate.kind == "open"


def test_a_model_card_says_what_the_adapters_belong_to(llava: TinyModel, tmp_path: Path):
    editor = trained_editor(llava)
    editor.save_pretrained(tmp_path)
    card = " ".join((tmp_path / "README.md").read_text().split())
    assert "library_name: easyedit-dualedit" in card
    assert "text adapter at decoder layer 1" in card and "hidden size 32" in card
    assert str(tmp_path) not in card
    (tmp_path / "README.md").write_text("my own")
    editor.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own"


def test_a_folder_of_this_machine_is_no_model_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    assert hub_id_of("checkpoints/llava-final") == ""
    assert hub_id_of("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"


def test_a_hub_id_is_looked_up_with_the_mixins_arguments(
    llava: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava)
    editor.save_pretrained(tmp_path)
    asked = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr("easyedit_dualedit.storage.hub.snapshot_download", download)
    loaded = DualEditor.from_pretrained(
        "someone/adapters", revision="v2", model=llava.model, processor=llava.processor
    )
    assert loaded.config == editor.config
    assert asked["repo"] == "someone/adapters" and asked["revision"] == "v2"
    assert asked["allow_patterns"] == ["config.json", "adapters.safetensors"]


def test_neither_a_folder_nor_a_hub_id_is_one_clear_error(llava: TinyModel, tmp_path: Path):
    for name in (str(tmp_path / "none"), "someone/adapters-that-nobody-has"):
        with pytest.raises(ArchiveError, match="no (saved )?adapters in") as error:
            DualEditor.from_pretrained(name, model=llava.model, processor=llava.processor)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("signal", ["target", "prompt+target", "all"])
def test_an_edit_reads_the_states_of_a_whole_forward(every: TinyModel, signal: str):
    editor = trained_editor(every, signal=signal)
    batch = editor.encoder.encode([request_of(), request_of("Which shape is it?", "a big circle")])
    with torch.no_grad(), record(editor.backbone.layers, editor.config.layers) as states:
        every.model(**batch.inputs, use_cache=False)
    expected = editor.signals_of(states, batch)
    for one, two in zip(editor.read_batch(batch), expected, strict=True):
        for layer, found in one.states.items():
            torch.testing.assert_close(found, two.states[layer], rtol=1e-4, atol=1e-4)
        for name in ("gate_state", "last_state", "vision_state"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-4)


def test_a_configuration_may_be_a_mapping_and_nothing_else(llava: TinyModel):
    made = DualEditor(
        llava.model, llava.processor, {"text_layer": 1, "vision_layer": 2, "width": 8}
    )
    assert made.config == DualEditConfig(text_layer=1, vision_layer=2, width=8)
    with pytest.raises(ConfigError, match="no vision_layer"):
        DualEditor(llava.model, llava.processor, {"text_layer": 1})
    for wrong in (None, "default", 3):
        with pytest.raises(ConfigError, match="give a DualEditConfig, or a mapping"):
            DualEditor(llava.model, llava.processor, wrong)
