"""All that can be asked of a transformers model is edited, passed on or refused, and known."""

import dataclasses
import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from pretended_device import NAME
from surface_table import ARGUMENTS, FIELDS, METHODS, OPTIONS, REFUSED, Rows, page
from tiny_editors import request_of, shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel
from transformers.generation import utils as generation

from easyedit_dualedit.errors import DualEditError, NotEditedError
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.surface import REFUSED_METHODS
from easyedit_dualedit.model.inputs import Batch

GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}
NEWEST = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24"), reason="older transformers has less"
)


def names_of(table: Iterable[Rows]) -> set[str]:
    return {name for rows in table for name in rows}


def open_one(tiny: TinyModel) -> tuple[DualEditor, EditedModel, Batch]:
    editor = trained_editor(tiny, gate="open")
    batch = editor.encoder.encode([request_of()])
    return editor, editor.edited(editor.read([request_of()])), batch


@torch.no_grad()
def output_of(model: Any, **inputs: Any) -> Any:
    """Return what a call returns; BLIP-2 keeps what its language model returned apart."""
    output = model(**inputs)
    return getattr(output, "language_model_outputs", output)


@pytest.mark.parametrize("table", [METHODS, FIELDS, ARGUMENTS, OPTIONS])
def test_a_name_has_one_meaning(table: tuple[Rows, ...]):
    names = [name for rows in table for name in rows]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


def test_the_guide_has_the_table():
    written = Path(__file__).parents[2] / "docs" / "guide" / "surface.md"
    assert written.read_text(encoding="utf-8") == page()


@NEWEST
def test_every_public_method_is_known():
    found = {n for f in FAMILIES for n in dir(type(shared(f).model)) if not n.startswith("_")}
    known = names_of(METHODS)
    found -= {NAME}  # of the pretended device: torch gives every module a method to move there
    assert found - known == set(), "add them to the table: are they edited?"
    if transformers.__version__.startswith("5.24."):
        assert known - found == set(), "there is no such method any more"


@NEWEST
def test_every_field_of_an_output_is_known():
    kinds: set[type] = {
        generation.GenerateDecoderOnlyOutput,
        generation.GenerateBeamDecoderOnlyOutput,
    }
    for family in FAMILIES:
        _, edited, batch = open_one(shared(family))
        with torch.no_grad():
            kinds.add(type(edited(**batch.inputs)))
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert fields - names_of(FIELDS) == set()


@NEWEST
def test_every_argument_of_a_call_is_known():
    found = {
        name
        for family in FAMILIES
        for name in inspect.signature(type(shared(family).model).forward).parameters
    }
    assert found - {"self"} - names_of(ARGUMENTS) == set()


@NEWEST
def test_every_option_of_generate_is_known():
    found = set(inspect.signature(generation.GenerationMixin.generate).parameters)
    found |= {n for n in vars(transformers.GenerationConfig()) if not n.startswith("_")}
    assert found - {"self"} - names_of(OPTIONS) == set()


@pytest.mark.parametrize("name", sorted(REFUSED_METHODS))
def test_methods_that_would_leave_out_the_edits_are_refused(llava: TinyModel, name: str):
    editor, edited, _ = open_one(llava)
    if not hasattr(llava.model, name):
        assert not hasattr(edited, name)
        pytest.skip("this transformers has no such method")
    with pytest.raises(NotEditedError, match=f"{name} of an edited model"):
        getattr(edited, name)("folder")
    assert getattr(editor.edited([]), name) is not None


@pytest.mark.parametrize(
    "option",
    [
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 1},
        {"guidance_scale": 1.5},
        {"guidance_scale": 0},
        {"token_healing": True},
        {"generation_config": transformers.GenerationConfig(guidance_scale=2.0)},
    ],
    ids=str,
)
def test_options_that_would_leave_out_the_edits_are_refused(
    llava: TinyModel, option: dict[str, Any]
):
    editor, edited, _ = open_one(llava)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    with pytest.raises(NotEditedError):
        edited.generate(**inputs, **GREEDY, **option)
    inert = {"prefill_chunk_size": None, "guidance_scale": 1.0, "token_healing": False}
    expected = edited.generate(**inputs, **GREEDY)
    assert torch.equal(edited.generate(**inputs, **GREEDY, **inert), expected)


def test_embeddings_are_refused_by_name(every: TinyModel):
    editor, edited, _ = open_one(every)
    embeddings = torch.zeros(1, 4, editor.backbone.hidden_size)
    with pytest.raises(DualEditError, match="input_ids"):
        edited(inputs_embeds=embeddings)
    with pytest.raises(DualEditError, match="input_ids"):
        edited.generate(inputs_embeds=embeddings)


@pytest.mark.parametrize("is_used", [False, True], ids=["fresh", "used"])
def test_hidden_states_are_shown_after_the_edit(every: TinyModel, is_used: bool):
    """Transformers records them by hooks that it leaves on the layers from the first use on."""
    tiny = every if is_used else FAMILIES[every.family]()
    editor, edited, batch = open_one(tiny)
    if is_used:
        output_of(tiny.model, **batch.inputs, output_hidden_states=True)
    entering: dict[int, torch.Tensor] = {}

    def note(index: int) -> Any:
        def hook(_layer: Any, args: Any, kwargs: Any) -> None:
            entering[index] = args[0] if args else kwargs["hidden_states"]

        return hook

    layers = editor.backbone.layers
    handles = [
        layer.register_forward_pre_hook(note(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        found = output_of(edited, **batch.inputs, output_hidden_states=True).hidden_states
    finally:
        for handle in handles:
            handle.remove()
    plain = output_of(tiny.model, **batch.inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(plain) == len(layers) + 1
    is_edited = [not torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert is_edited == [False, False, True, True, True], "the text layer is 1"
    for index in (2, 3):  # Qwen3-VL adds features of pictures after the first
        assert torch.equal(found[index], entering[index])


def test_other_fields_of_an_output_are_those_of_the_edited_forward(every: TinyModel):
    family = every.family
    tiny = FAMILIES[family]()
    tiny.model.set_attn_implementation("eager")
    _, edited, batch = open_one(tiny)
    asked = {**batch.inputs, "labels": batch.labels, "output_attentions": True, "use_cache": True}
    with torch.no_grad():
        whole, plain = edited(**asked), tiny.model(**asked)
        apart = tiny.model(**asked)
    found, base = (getattr(o, "language_model_outputs", o) for o in (whole, plain))
    assert not torch.equal(whole.loss, plain.loss) and torch.equal(apart.loss, plain.loss)
    pairs = [p for p in zip(found.attentions, base.attentions, strict=True) if p[0] is not None]
    assert not torch.equal(*pairs[-1])
    if family != "qwen3.5":  # its first layers are linear attention
        assert torch.equal(*pairs[0]) and torch.equal(*pairs[1])
    as_tuple = edited(**asked, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert any(torch.equal(part, whole.loss) for part in as_tuple if torch.is_tensor(part))
    for name in ("image_hidden_states", "video_hidden_states"):
        if torch.is_tensor(getattr(whole, name, None)):
            assert torch.equal(getattr(whole, name), getattr(plain, name))


def test_what_generate_returns_is_edited(every: TinyModel):
    editor, edited, _ = open_one(every)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True}
    options |= {"output_logits": True, "output_hidden_states": True}
    found, plain = (m.generate(**inputs, **options) for m in (edited, every.model))
    assert torch.equal(found.sequences, edited.generate(**inputs, **GREEDY))
    for name in ("scores", "logits"):
        first, unedited = getattr(found, name)[0], getattr(plain, name)[0]
        assert not torch.allclose(first, unedited, atol=1e-3), name
    states, unedited = found.hidden_states[0], plain.hidden_states[0]
    assert torch.equal(states[1], unedited[1]) and not torch.equal(states[2], unedited[2])
    assert found.past_key_values is not None


def test_a_custom_generate_is_given_a_model_whose_calls_are_edited(every: TinyModel):
    editor, edited, _ = open_one(every)
    if every.family == "blip2":
        pytest.skip("BLIP-2 hands it to its language model, which is another class")
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs

    def first_token(model: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        ours = ("generation_config", "logits_processor", "stopping_criteria")
        known = {name: value for name, value in options.items() if name not in ours}
        return model(input_ids=input_ids, **known).logits[:, -1]

    found = edited.generate(**inputs, **GREEDY, custom_generate=first_token)
    with torch.no_grad():
        expected = edited(**inputs).logits[:, -1]
    torch.testing.assert_close(found, expected)


def test_the_base_model_changes_for_all_and_the_edit_stays():
    tiny = FAMILIES["llava"]()
    _, edited, batch = open_one(tiny)
    inputs = batch.inputs
    expected = output_of(edited, **inputs).logits
    for change in ("train", "eval", "double", "float"):
        assert getattr(edited, change)() is edited
    assert tiny.model.dtype == torch.float32 and not tiny.model.training
    torch.testing.assert_close(output_of(edited, **inputs).logits, expected)
    assert edited.to(torch.float64) is edited and edited.dtype == torch.float64
    again = output_of(edited, **{**inputs, "pixel_values": inputs["pixel_values"].double()}).logits
    torch.testing.assert_close(again.float(), expected, atol=1e-3, rtol=1e-3)
    edited.float()
    size = tiny.model.get_input_embeddings().weight.shape[0]
    edited.resize_token_embeddings(size + 4)
    assert tiny.model.get_output_embeddings().weight.shape[0] == size + 4
    torch.testing.assert_close(output_of(edited, **inputs).logits[..., :size], expected)
    assert edited.get_decoder() is tiny.model.get_decoder()
    assert edited.state_dict().keys() == tiny.model.state_dict().keys()
    pixels = inputs["pixel_values"]
    features = [m.get_image_features(pixel_values=pixels) for m in (edited, tiny.model)]
    first, second = (getattr(each, "pooler_output", each) for each in features)
    assert torch.equal(torch.cat(list(first)), torch.cat(list(second)))


def test_every_refusal_says_what_to_do():
    for table in (METHODS, OPTIONS):
        for rows in table:
            assert rows.kind != REFUSED or len(rows.says) > 20
