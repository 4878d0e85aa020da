"""One model in many forms is the same one: quantised, offloaded, with PEFT's layers around it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tiny_editors import request_of, shared, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel
from torch import nn

from easyedit_dualedit import DualEditor, EditMemory, load_model
from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.fingerprint import ModelFingerprint, PartSample
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.testbed import adapters_folder, model_folder

Form = Callable[[Any], Any]
KINDS: tuple[Literal["4bit", "8bit"], ...] = ("4bit", "8bit")


def of(model: Any) -> ModelFingerprint:
    """Return the fingerprint of a model as a file gives it back."""
    made = ModelFingerprint.of(Backbone.of(model))
    return ModelFingerprint.from_dict(json.loads(json.dumps(made.to_dict())))


def are_the_same(one: ModelFingerprint, other: ModelFingerprint) -> bool:
    """Return what both say of it, which must be the same thing."""
    found = {one.difference(other) is None, other.difference(one) is None}
    assert len(found) == 1
    return found.pop()


def offloaded(*names: str) -> Form:
    """Return what takes away weights whose names contain one of some words, as accelerate does."""

    def change(model: Any) -> Any:
        for name, parameter in list(model.named_parameters()):
            if any(word in name for word in names):
                module = model.get_submodule(name.rpartition(".")[0])
                empty = nn.Parameter(parameter.to("meta"), requires_grad=False)
                setattr(module, name.rpartition(".")[2], empty)
        return model

    return change


def with_lora(**settings: Any) -> Form:
    """Return what puts PEFT's low-rank layers into a model."""

    def change(model: Any) -> Any:
        peft = pytest.importorskip("peft")
        chosen = {"target_modules": ["q_proj", "v_proj"], "r": 2} | settings
        return peft.get_peft_model(model, peft.LoraConfig(**chosen))

    return change


FORMS: dict[str, Form] = {
    "norms offloaded": offloaded("norm"),
    "one matrix of each layer offloaded": offloaded("k_proj"),
    "everything but the projector offloaded": offloaded("language_model", "vision", "lm_head"),
    "LoRA": with_lora(),
    "LoRA everywhere": with_lora(target_modules="all-linear"),
    "LoRA of embeddings": with_lora(target_modules=["embed_tokens", "o_proj"]),
    "copies that are to be trained": with_lora(modules_to_save=["linear_1", "norm"]),
}


def scaled(model: Any) -> Any:
    """Return another model: all weights are larger."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_a_model_in_another_form_is_the_same_and_another_is_not(llava: TinyModel, form: str):
    mine = of(llava.model)
    changed = of(FORMS[form](copy.deepcopy(llava.model)))
    assert are_the_same(mine, changed)
    assert are_the_same(of(copy.deepcopy(llava.model).to(torch.bfloat16)), changed)
    assert are_the_same(changed, of(FORMS[form](copy.deepcopy(llava.model))))
    other = of(FORMS[form](scaled(copy.deepcopy(llava.model))))
    assert not are_the_same(mine, other) and not are_the_same(changed, other)
    assert not are_the_same(changed, of(scaled(copy.deepcopy(llava.model))))


def test_two_forms_are_compared_in_what_both_have(llava: TinyModel):
    one, other = (
        of(offloaded(word)(copy.deepcopy(llava.model))) for word in ("self_attn", "mlp.down_proj")
    )
    assert are_the_same(one, other)
    norms = copy.deepcopy(llava.model)
    with torch.no_grad():
        norms.get_parameter("model.language_model.layers.1.input_layernorm.weight").add_(1)
    assert not are_the_same(one, of(offloaded("mlp.down_proj")(norms)))
    attention = copy.deepcopy(llava.model)
    with torch.no_grad():
        attention.get_parameter("model.language_model.layers.1.self_attn.q_proj.weight").add_(1)
    assert are_the_same(one, of(offloaded("mlp.down_proj")(attention)))


def test_tensors_that_cannot_be_read_are_counted():
    ones = (1.0,) * 16
    whole = PartSample("float32", ones * 3)
    assert whole.is_same(PartSample("float32", ones * 2, (1,)))
    assert not whole.is_same(PartSample("float32", ones * 2, (1, 2)))
    # An earlier version kept two tensors of a part with a quantised one, and not their places.
    assert PartSample("float32", ones * 2).is_same(PartSample("float32", ones * 2, (1,)))
    assert not PartSample("float32", ones * 2, (0, 1)).is_same(
        PartSample("float32", ones * 2, (1,))
    )
    nan = PartSample("float32", (float("nan"),) * 16, (0,))
    assert not nan.is_same(PartSample("float32", ones, (1,)))


def test_sizes_are_compared_where_no_weights_can_be(
    llava: TinyModel, caplog: pytest.LogCaptureFixture
):
    nothing = of(offloaded("")(copy.deepcopy(llava.model)))
    assert nothing.parts == {} and are_the_same(of(llava.model), nothing)
    assert "no weights can be compared" in caplog.text
    fewer = copy.deepcopy(llava.model)
    fewer.model.language_model.layers = fewer.model.language_model.layers[:-1]
    assert not are_the_same(of(fewer), nothing)


def lora_b(model: Any) -> list[nn.Parameter]:
    return [value for name, value in model.named_parameters() if "lora_B" in name]


TRAINED: dict[str, tuple[Form, Callable[[Any], list[nn.Parameter]]]] = {
    "LoRA": (with_lora(), lora_b),
    "its bias": (with_lora(lora_bias=True), lambda model: lora_b(model)[1:2]),
    "a copy": (
        with_lora(modules_to_save=["linear_1"]),
        lambda model: [p for name, p in model.named_parameters() if "modules_to_save" in name][:1],
    ),
    "magnitudes": (
        with_lora(use_dora=True),
        lambda model: [p for name, p in model.named_parameters() if "magnitude" in name][:1],
    ),
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_layers_make_another_model(llava: TinyModel, name: str):
    change, chosen = TRAINED[name]
    model = change(copy.deepcopy(llava.model))
    trained = chosen(model)
    assert trained
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    assert not are_the_same(of(llava.model), of(model))
    assert are_the_same(of(model), of(copy.deepcopy(model)))


class Packed(nn.Module):
    """A matrix as libraries keep it that put their own tensors in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.ones(4, 4, dtype=torch.int32))
        self.scales = nn.Parameter(torch.ones(4))


def test_a_part_with_tensors_of_its_own_for_packed_weights_is_left_out(llava: TinyModel):
    model = copy.deepcopy(llava.model)
    model.model.language_model.layers[0].self_attn.q_proj = Packed()
    assert not are_the_same(of(llava.model), of(model))
    model.config.quantization_config = {"quant_method": "gptq"}
    mine = of(model)
    assert "decoder layer 0" not in mine.parts and "decoder layer 1" in mine.parts
    assert are_the_same(of(llava.model), mine)
    assert not are_the_same(of(scaled(copy.deepcopy(llava.model))), mine)


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_edits_go_between_precisions(
    kind: Literal["4bit", "8bit"], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    # Four-bit weights come in blocks of 64.
    FAMILIES["llava"](hidden_size=64).save(tmp_path / "model")
    whole, processor = load_model(str(tmp_path / "model"))
    small, _ = load_model(str(tmp_path / "model"), quantization=kind)
    for one, other, name in ((whole, small, "whole"), (small, whole, "small")):
        editor = trained_editor(TinyModel("llava", one, processor))
        editor.save(tmp_path / name)
        memory = EditMemory(editor)
        memory.add(request_of())
        memory.save(tmp_path / f"{name} edits")
        loaded = DualEditor.load(other, processor, tmp_path / name)
        assert len(EditMemory.load(loaded, tmp_path / f"{name} edits")) == 1
        assert len(EditMemory.load(editor, tmp_path / f"{name} edits")) == 1
    scaled(whole).save_pretrained(tmp_path / "model")
    other, _ = load_model(str(tmp_path / "model"), quantization=kind)
    for name in ("whole", "small"):
        with pytest.raises(ArchiveError, match="other weights in its decoder layer 0"):
            DualEditor.load(other, processor, tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_adapters_are_those_of_a_quantised_model(kind: Literal["4bit", "8bit"]):
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    model, processor = load_model(str(model_folder()), quantization=kind)
    DualEditor.load(model, processor, adapters_folder("default"))


def test_shipped_adapters_are_those_of_a_model_that_is_partly_on_disk(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    model, processor = load_model(str(model_folder()))
    near = ("vision_tower", "multi_modal_projector", "image_newline")
    near += ("language_model.embed_tokens", "language_model.rotary_emb")
    places = {f"model.{name}": "cpu" for name in near}
    places |= {f"model.language_model.layers.{index}": "cpu" for index in range(5)}
    places |= {"model.language_model.layers.5": "disk", "model.language_model.norm": "disk"}
    model = accelerate.dispatch_model(
        model, places | {"lm_head": "disk"}, main_device="cpu", offload_dir=str(tmp_path)
    )
    assert any(parameter.is_meta for parameter in model.parameters())
    DualEditor.load(model, processor, adapters_folder("default"))
    scaled(model.model.vision_tower)
    with pytest.raises(ArchiveError, match="other weights in its vision tower"):
        DualEditor.load(model, processor, adapters_folder("default"))


def test_adapters_go_from_a_model_with_peft_to_the_merged_one(tmp_path: Path):
    tiny = shared("llava")
    model = with_lora()(copy.deepcopy(tiny.model))
    trained_editor(TinyModel("llava", model, tiny.processor)).save(tmp_path)
    DualEditor.load(tiny.model, tiny.processor, tmp_path)
    DualEditor.load(model.merge_and_unload(), tiny.processor, tmp_path)
    with pytest.raises(ArchiveError, match="other weights"):
        DualEditor.load(scaled(copy.deepcopy(tiny.model)), tiny.processor, tmp_path)
