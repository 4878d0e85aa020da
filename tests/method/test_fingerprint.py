"""Any other model is told apart, and the same one in another dtype is not."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_editors import backbone_of, trained_editor
from tiny_models import TinyModel
from torch import nn

from easyedit_dualedit import DualEditor
from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.archive import CONFIG_FILE
from easyedit_dualedit.method.fingerprint import ModelFingerprint, PartSample
from easyedit_dualedit.model.backbone import Backbone


def of(model: Any) -> ModelFingerprint:
    return ModelFingerprint.of(Backbone.of(model))


def changed(tiny: TinyModel, change: Callable[[Any], None]) -> ModelFingerprint:
    """Return the fingerprint of a copy of the model with something changed."""
    model = copy.deepcopy(tiny.model)
    with torch.no_grad():
        change(model)
    return of(model)


def test_every_tensor_counts(every: TinyModel):
    mine = of(every.model)
    names = [name for name, parameter in every.model.named_parameters() if parameter.numel() > 1]
    model = copy.deepcopy(every.model)
    for name in names:
        parameter = model.get_parameter(name)
        before = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(1.0)
        assert mine.difference(of(model)) is not None, name
        with torch.no_grad():
            parameter.copy_(before)
    assert mine.difference(of(model)) is None


CHANGES: dict[str, Callable[[Any], None]] = {
    "all weights times 1.01": lambda model: [p.mul_(1.01) for p in model.parameters()],
    "one layer times 1.0001": lambda model: [
        p.mul_(1.0001) for p in Backbone.of(model).layers[2].parameters()
    ],
    "NaN everywhere": lambda model: [p.fill_(math.nan) for p in model.parameters()],
    "infinite embeddings": lambda model: model.get_input_embeddings().weight.fill_(math.inf),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_model_is_told_apart(tiny: TinyModel, name: str):
    assert of(tiny.model).difference(changed(tiny, CHANGES[name])) is not None
    assert changed(tiny, CHANGES[name]).difference(of(tiny.model)) is not None


def test_the_part_that_differs_is_named(tiny: TinyModel):
    mine = of(tiny.model)
    layer = changed(tiny, lambda model: next(Backbone.of(model).layers[1].parameters()).add_(1))
    assert mine.difference(layer) == "other weights in its decoder layer 1"
    tower = [
        name for name, _ in tiny.model.named_parameters() if "vision" in name and "weight" in name
    ][0]
    seen = changed(tiny, lambda model: model.get_parameter(tower).add_(1))
    assert mine.difference(seen) == "other weights in its vision tower, projector and norms"
    both = changed(tiny, lambda model: [p.add_(1) for p in model.parameters()])
    assert "decoder layer 0 and" in str(mine.difference(both))


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("one", DTYPES)
@pytest.mark.parametrize("other", DTYPES)
def test_the_same_model_in_another_dtype_is_the_same(
    llava: TinyModel, one: torch.dtype, other: torch.dtype
):
    mine, theirs = (of(copy.deepcopy(llava.model).to(dtype)) for dtype in (one, other))
    assert mine.difference(theirs) is None
    scaled = copy.deepcopy(llava.model)
    with torch.no_grad():
        for parameter in scaled.parameters():
            parameter.mul_(1.01)
    assert mine.difference(of(scaled.to(other))) is not None


def layer_of(value: torch.Tensor) -> PartSample:
    from easyedit_dualedit.method.fingerprint import _sample

    return _sample([nn.Parameter(value, requires_grad=False)])


def test_weights_that_cannot_be_read_are_left_out():
    assert layer_of(torch.ones(4, 4, dtype=torch.uint8)).values == ()
    assert layer_of(torch.ones(4, 4, device="meta")).values == ()
    assert len(layer_of(torch.ones(4, 4)).values) == 16
    # 5120 by 5120, as in models of 13 billion parameters: no index overflows.
    large = torch.zeros(5120, 5120, dtype=torch.bfloat16)
    assert layer_of(large).values == (0.0,) * 16


def test_a_part_that_only_one_of_them_has_is_not_compared(llava: TinyModel):
    mine = of(llava.model)
    parts = {name: part for name, part in mine.parts.items() if name != "decoder layer 0"}
    fewer = ModelFingerprint(mine.architecture, parts, ())
    assert mine.difference(fewer) is None and fewer.difference(mine) is None


def test_a_fingerprint_is_written_and_read_exactly(every: TinyModel):
    mine = of(every.model)
    text = json.dumps(mine.to_dict())
    assert ModelFingerprint.from_dict(json.loads(text)).parts == mine.parts


DAMAGES: list[dict[str, Any]] = [
    {"parts": {"embeddings": {"dtype": "int8", "values": ""}}},
    {"parts": {"embeddings": {"dtype": "float32", "values": "AADAfw=="}}},  # NaN
    {"parts": {"embeddings": {"dtype": "float32", "values": "AAA="}}},
    {"parts": {"embeddings": {"dtype": "float32", "values": "AACAPw=="}}},  # one number
    {"parts": {"embeddings": {"dtype": "float32", "values": "", "missing": [1]}}},
    {"parts": {"embeddings": {"dtype": "float32", "values": "", "missing": [1, 0]}}},
    {"parts": {"embeddings": {"dtype": "float32", "values": "", "missing": 3}}},
    {"parts": 3},
    {"weights": [1.0, math.nan]},
    {"weights": ["a"]},
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_fingerprint_is_refused(damage: dict[str, Any]):
    with pytest.raises((ValueError, KeyError, TypeError)):
        ModelFingerprint.from_dict({"architecture": {}, **damage})


def test_archives_of_earlier_versions_load_with_a_warning(
    llava: TinyModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    trained_editor(llava).save(tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    weights = list(ModelFingerprint.of(backbone_of(llava)).first_weights)
    values["model"] = {"architecture": values["model"]["architecture"], "weights": weights}
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    DualEditor.load(llava.model, llava.processor, tmp_path)
    assert "earlier version" in caplog.text
    values["model"]["weights"] = [weight + 1 for weight in weights]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(ArchiveError, match="this one has other weights; load the model"):
        DualEditor.load(llava.model, llava.processor, tmp_path)
    nan = copy.deepcopy(llava.model)
    with torch.no_grad():
        [parameter.fill_(math.nan) for parameter in nan.parameters()]
    values["model"]["weights"] = weights
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(ArchiveError, match="other weights"):
        DualEditor.load(nan, llava.processor, tmp_path)
