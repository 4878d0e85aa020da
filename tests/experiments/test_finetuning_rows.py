"""Fine-tuning as a method of the benchmark: it learns the request, and leaves no trace."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import backbone_of, picture, request_of
from tiny_families import FAMILIES
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import BackboneError, ConfigError
from easyedit_dualedit.experiments.finetuning_rows import (
    LAST_LAYER,
    VISION_SIDE,
    FineTuning,
    FineTuningConfig,
    finetuning_contenders,
    last_layer_parameters,
    vision_parameters,
)
from easyedit_dualedit.measure.contender import Bench, Method
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.losses import answer_cross_entropy


def record_of() -> Record:
    request = request_of()
    return Record(
        0,
        request,
        Query("The circle is?", request.image, "blue"),
        Query(request.prompt, picture("red", (34, 38)), "blue"),
        Query("Where is the star?", None, "top left"),
        Query("How many squares are there?", picture("green"), "three"),
        "red",
    )


def made(tiny: TinyModel, name: str, **settings: Any) -> Method:
    contender = next(c for c in finetuning_contenders() if c.name == name)
    bench = Bench("tiny", lambda: (tiny.model, tiny.processor), "cpu", Path(), settings=settings)
    return contender.make(bench)


@torch.no_grad()
def loss_of(tiny: TinyModel, query: Query) -> float:
    batch = Encoder(backbone_of(tiny), tiny.processor).encode([query])
    return float(answer_cross_entropy(tiny.model(**batch.inputs).logits, batch.labels))


@pytest.mark.parametrize("name", [LAST_LAYER, VISION_SIDE])
def test_an_edit_lowers_the_loss_and_is_undone(tiny: TinyModel, name: str) -> None:
    record = record_of()
    # Tiny random models are stiff.
    method = made(tiny, name, learning_rate="1e-2")
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    flags = [value.requires_grad for value in tiny.model.parameters()]
    plain = loss_of(tiny, record.request)
    with method.edit(record) as edited:
        assert edited.model is tiny.model
        assert loss_of(tiny, record.request) < plain - 1
        assert any(not torch.equal(before[k], v) for k, v in tiny.model.state_dict().items())
        batch = Encoder(backbone_of(tiny), tiny.processor).encode([Query("What?", picture())])
        made_up = edited.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
        assert made_up.shape[1] > batch.inputs["input_ids"].shape[1]
    assert all(torch.equal(before[k], v) for k, v in tiny.model.state_dict().items())
    assert flags == [value.requires_grad for value in tiny.model.parameters()]
    assert all(value.grad is None for value in tiny.model.parameters())
    assert not any(part.training for part in tiny.model.modules())
    assert loss_of(tiny, record.request) == plain


def test_an_edit_is_undone_if_what_asks_fails(llava: TinyModel) -> None:
    before = {key: value.clone() for key, value in llava.model.state_dict().items()}
    with pytest.raises(ZeroDivisionError), made(llava, LAST_LAYER).edit(record_of()):
        raise ZeroDivisionError
    assert all(torch.equal(before[k], v) for k, v in llava.model.state_dict().items())


def test_an_edit_does_not_depend_on_the_one_before(llava: TinyModel) -> None:
    method, found = made(llava, LAST_LAYER, steps=3), []
    for _ in range(2):
        with method.edit(record_of()):
            found.append(loss_of(llava, record_of().request))
    assert found[0] == found[1]


def test_training_stops_at_a_small_loss(llava: TinyModel) -> None:
    plain = loss_of(llava, record_of().request)
    with made(llava, LAST_LAYER, loss_below=1000).edit(record_of()):
        assert loss_of(llava, record_of().request) == plain


def test_only_the_last_layer_is_trained(every: TinyModel) -> None:
    backbone = backbone_of(every)
    found = last_layer_parameters(backbone)
    assert {id(v) for v in found.values()} == {id(v) for v in backbone.layers[-1].parameters()}


def test_the_vision_side_is_what_is_no_text_decoder(every: TinyModel) -> None:
    model = every.model
    names = set(vision_parameters(backbone_of(every)))
    text = {id(value) for value in backbone_of(every).decoder.parameters()}
    for name, value in model.named_parameters():
        assert (name in names) != (id(value) in text or name.endswith("lm_head.weight")), name
    assert any("vision" in name or "visual" in name for name in names)
    assert not any("embed_tokens" in name or "lm_head" in name for name in names)


def test_gradients_reach_the_vision_side_of_every_family(every: TinyModel) -> None:
    tiny = FAMILIES[every.family]()
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    with made(tiny, VISION_SIDE, steps=1).edit(record_of()):
        changed = {k for k, v in tiny.model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed
    assert changed <= set(vision_parameters(backbone_of(tiny)))


def test_what_is_stored_is_what_is_trained(llava: TinyModel) -> None:
    method = made(llava, LAST_LAYER, steps=1)
    count = sum(value.numel() for value in backbone_of(llava).layers[-1].parameters())
    assert method.trained_parameters == count
    with method.edit(record_of()) as edited:
        assert edited.stored_bytes == 4 * count


def test_bfloat16_is_put_back_bit_for_bit() -> None:
    tiny = tiny_llava()
    tiny.model.to(torch.bfloat16)
    before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    with made(tiny, LAST_LAYER).edit(record_of()) as edited:
        changed = [k for k, v in tiny.model.state_dict().items() if not torch.equal(before[k], v)]
        assert changed
        assert edited.stored_bytes == 2 * made(tiny, LAST_LAYER).trained_parameters
    assert all(torch.equal(before[k], v) for k, v in tiny.model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rate": 1}, "unknown keys in the settings of FT, last layer: rate.*learning_rate"),
        ({"steps": 0}, "steps = 0"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast'"),
        ({"loss_below": -1, "end_of_answer": 1}, "loss_below = -1.*end_of_answer = 1"),
    ],
)
def test_bad_settings_are_named(llava: TinyModel, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made(llava, LAST_LAYER, **settings)


def test_nothing_to_train_and_quantised_weights_are_refused(llava: TinyModel) -> None:
    config = FineTuningConfig()
    with pytest.raises(BackboneError, match="no such parameters"):
        FineTuning(llava.model, llava.processor, {}, config)
    packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BackboneError, match="packed is stored as torch.uint8"):
        FineTuning(llava.model, llava.processor, {"packed": packed}, config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_edit_is_learned_in_every_dtype(dtype: torch.dtype) -> None:
    tiny = tiny_llava()
    tiny.model.to(dtype)
    record = record_of()
    with made(tiny, LAST_LAYER, learning_rate="1e-2", steps=60).edit(record) as edited:
        encoder = Encoder(backbone_of(tiny), tiny.processor)
        batch = encoder.encode([record.request], with_target=False)
        target = encoder.target_ids(record.request.target or "")
        options = {"max_new_tokens": len(target), "do_sample": False}
        said = edited.model.generate(**batch.inputs, **options)
        assert said[0, batch.inputs["input_ids"].shape[1] :].tolist() == target
        assert {value.dtype for value in tiny.model.parameters()} == {dtype}


def test_a_loss_that_is_no_number_is_told(caplog: pytest.LogCaptureFixture) -> None:
    tiny = tiny_llava()
    with torch.no_grad():
        last_layer_parameters(backbone_of(tiny))["mlp.down_proj.weight"].fill_(torch.nan)
    with made(tiny, LAST_LAYER).edit(record_of()):
        pass
    assert "the loss is nan" in caplog.text


def test_what_may_be_chosen_begins_with_the_defaults():
    defaults = FineTuningConfig()
    for row in finetuning_contenders():
        first = {name: values[0] for name, values in row.space.items()}
        assert first and first == {name: getattr(defaults, name) for name in row.space}
