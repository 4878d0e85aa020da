"""What families differ in: several pictures, quantised weights, answers given by the user."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, shared, tiny_config, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.errors import BackboneError, ConfigError, DataError, ModelLoadError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig, family_of
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.loading import load_model, placement_of

TWO = Query("How many circles are there?", (picture("red"), picture("blue")), "two")


def test_two_pictures_are_edited_or_refused(every: TinyModel) -> None:
    editor = trained_editor(every)
    if every.family == "blip2":
        with pytest.raises(DataError, match="2 pictures in one query, but Blip2.* takes 1"):
            editor.read([TWO])
        return
    one = editor.encoder.encode([Query(TWO.prompt, picture("red"))])
    batch = editor.encoder.encode([TWO, request_of()])
    assert not torch.equal(
        batch.inputs["input_ids"][0, batch.layout.real[0]], one.inputs["input_ids"][0]
    )
    assert int(batch.layout.vision[0].sum()) >= int(one.layout.vision[0].sum())
    edited = editor.edited(editor.read([TWO]))
    with torch.no_grad():
        plain = every.model(**batch.inputs).logits
        changed = edited(**batch.inputs).logits
    assert edited.route(**batch.inputs).edit_index[0] == 0
    assert not torch.equal(plain[0], changed[0])
    prompt = editor.encoder.encode([TWO], with_target=False)
    made = edited.generate(**prompt.inputs, max_new_tokens=2, do_sample=False)
    assert made.shape[1] > prompt.inputs["input_ids"].shape[1]


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("family", ["llava", "blip2"])
def test_a_quantised_model_is_edited(family: str, quantization: Any, tmp_path: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    # Four-bit weights come in blocks of 64.
    FAMILIES[family](hidden_size=64).save(tmp_path)
    model, processor = load_model(str(tmp_path), quantization=quantization)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    model.requires_grad_(False)  # as training does
    editor = trained_editor(TinyModel(family, model, processor))
    request = request_of()
    edited = editor.edit(request.image, request.prompt, "blue")
    batch = editor.encoder.encode([request])
    with torch.no_grad():
        plain = model(**batch.inputs).logits
        assert not torch.equal(edited(**batch.inputs).logits, plain)
        assert torch.equal(model(**batch.inputs).logits, plain)
    if quantization == "4bit":
        with pytest.raises(BackboneError, match="keep no gradient on a CPU.*quantization: 8bit"):
            editor.backbone.require_gradients()
        return
    editor.backbone.require_gradients()
    edited = editor.edited(editor.read([request]))
    loss = edited(layout=batch.layout, **batch.inputs).logits.float().square().mean()
    loss.backward()
    assert all(p.grad is not None for p in editor.adapters.parameters())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())


def test_quantisation_without_its_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelLoadError, match="4bit.*needs bitsandbytes.*pip install bitsandbytes"):
        placement_of("cpu", torch.float32, "4bit")
    assert placement_of("cpu", torch.float32, None) == {}
    assert placement_of("auto", torch.float32, None) == {"device_map": "auto"}


def test_a_spread_model_is_edited(llava: TinyModel, tmp_path: Any) -> None:
    llava.save(tmp_path)
    model, processor = load_model(str(tmp_path), device="auto")
    editor = trained_editor(TinyModel("llava", model, processor))
    batch = editor.encoder.encode([request_of()])
    with torch.no_grad():
        found = editor.edited(editor.read([request_of()]))(**batch.inputs).logits
        same = trained_editor(llava)
        expected = same.edited(same.read([request_of()]))(**batch.inputs).logits
    torch.testing.assert_close(found.cpu(), expected)


def test_a_user_answers_where_a_model_does_not() -> None:
    tiny = FAMILIES["llava"]()
    expected = Backbone.of(shared("llava").model)
    language, token = tiny.model.model.language_model, expected.image_token_id
    text = tiny.model.config.get_text_config()
    tiny.model.config = SimpleNamespace(get_text_config=lambda: text, model_type="unknown")
    tiny.model.get_decoder = lambda: None
    template = "{{ messages[0]['content'][-1]['text'] }} Answer:"
    with pytest.raises(BackboneError, match="backbone: {decoder_layers: "):
        Backbone.of(tiny.model)
    layers = {"decoder_layers": "model.language_model.layers"}
    with pytest.raises(BackboneError, match="backbone: {image_token_id: <id>}"):
        Backbone.of(tiny.model, BackboneConfig(**layers))
    given = BackboneConfig(**layers, image_token_id=token, chat_template=template)
    backbone = Backbone.of(tiny.model, given)
    assert backbone.layers == tuple(language.layers) and backbone.decoder is language
    encoder = Encoder(backbone, tiny.processor)
    assert encoder.prompt_text(Query("Who?")) == "Who? Answer:"
    config = tiny_config(backbone={**layers, "image_token_id": token})
    assert DualEditor(tiny.model, tiny.processor, config).backbone.image_token_id == token
    assert tiny_config(**config.to_dict()) == config


@pytest.mark.parametrize("path", ["model.nothing", "model.language_model", "lm_head"])
def test_a_path_that_leads_to_no_layers_is_named(llava: TinyModel, path: str) -> None:
    with pytest.raises(BackboneError, match=f"decoder_layers = '{path}'"):
        Backbone.of(llava.model, BackboneConfig(decoder_layers=path))


@pytest.mark.parametrize(
    "values",
    [{"decoder_layers": 3}, {"image_token_id": -1}, {"chat_template": " "}, {"layer": "x"}, "x"],
    ids=str,
)
def test_answers_that_are_none_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match="backbone"):
        BackboneConfig.read(values)


def test_an_image_token_that_is_not_expanded_is_refused(llava: TinyModel) -> None:
    other = int(llava.processor.tokenizer.convert_tokens_to_ids("<video>"))
    backbone = Backbone.of(llava.model, BackboneConfig(image_token_id=other))
    with pytest.raises(BackboneError, match="puts 0 image tokens .*processor expands"):
        Encoder(backbone, llava.processor).encode([request_of()])


def test_a_prompt_read_by_an_encoder_is_refused() -> None:
    tiny = FAMILIES["llava"]()
    tiny.model.config.is_encoder_decoder = True
    with pytest.raises(BackboneError, match="reads its prompt in an encoder"):
        Backbone.of(tiny.model)


def test_families_are_told_by_the_type_in_their_config(every: TinyModel) -> None:
    family = family_of(every.model.config)
    assert (family.chat_template is not None) == (every.family in ("blip2", "paligemma"))
    assert family_of(None) == family_of(shared("llava").model.config)
