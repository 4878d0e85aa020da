"""Parts that EasyEdit's hyperparameters name, found in models of every family."""

import pytest
import torch
from tiny_editors import backbone_of
from tiny_models import LAYERS, TinyModel
from torch import nn

from easyedit_dualedit.errors import LayerError, UpstreamError
from easyedit_dualedit.plugin.rows.model_parts import (
    DOWN,
    GATE,
    UP,
    as_expression,
    decoder_prefix,
    layer_in_proportion,
    mlp_parameters,
)


def test_the_prefix_leads_to_the_decoder_layers(every: TinyModel) -> None:
    backbone = backbone_of(every)
    prefix = decoder_prefix(every.model, backbone)
    assert tuple(every.model.get_submodule(prefix)) == backbone.layers


def test_layers_in_no_list_are_refused(llava: TinyModel) -> None:
    with pytest.raises(UpstreamError, match="Linear are in no list"):
        decoder_prefix(nn.Linear(2, 2), backbone_of(llava))


@pytest.mark.parametrize(
    ("index", "reference", "depth", "expected"),
    [
        (0, 28, 6, 0),
        (27, 28, 6, 5),
        (18, 28, 6, 3),
        (23, 28, 6, 4),
        (18, 28, 28, 18),
        (9, 10, 1, 0),
    ],
)
def test_a_layer_keeps_its_place(index: int, reference: int, depth: int, expected: int) -> None:
    assert layer_in_proportion(index, reference, depth) == expected


def test_every_layer_of_the_reference_has_a_place_in_order() -> None:
    places = [layer_in_proportion(index, 28, 6) for index in range(28)]
    assert places == sorted(places)
    assert set(places) == set(range(6))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_feed_forward_projections_are_found(every: TinyModel, layer: int) -> None:
    found = mlp_parameters(every.model, layer)
    width = backbone_of(every).hidden_size
    down = every.model.get_parameter(found[DOWN])
    assert down.shape[0] == width
    assert down.shape[1] != width
    for role in set(found) - {DOWN}:
        assert every.model.get_parameter(found[role]).shape == (down.shape[1], width)
    assert len(set(found.values())) == len(found) == (2 if every.family == "blip2" else 3)
    assert all(f".{layer}." in name for name in found.values())


def test_the_names_are_those_of_transformers(llava: TinyModel) -> None:
    start = "model.language_model.layers.2.mlp"
    assert mlp_parameters(llava.model, 2) == {
        DOWN: f"{start}.down_proj.weight",
        UP: f"{start}.up_proj.weight",
        GATE: f"{start}.gate_proj.weight",
    }


def test_a_layer_that_is_not_there_is_named(llava: TinyModel) -> None:
    with pytest.raises(LayerError, match="layer = 9"):
        mlp_parameters(llava.model, 9)


@pytest.mark.parametrize(("count", "told"), [(0, "no feed-forward"), (2, "2 feed-forward")])
def test_a_layer_without_one_block_is_refused(llava: TinyModel, count: int, told: str) -> None:
    layer = backbone_of(llava).layers[1]
    block = layer.mlp
    try:
        layer.mlp = nn.ModuleList([block] * count) if count < 2 else _Experts(block)
        with pytest.raises(UpstreamError, match=told):
            mlp_parameters(llava.model, 1)
    finally:
        layer.mlp = block


def test_a_name_is_evaluated_to_the_parameter(every: TinyModel) -> None:
    name = mlp_parameters(every.model, 1)[DOWN]
    expression = as_expression(name)
    assert "[1]" in expression
    found = eval(f"model.{expression}", {"model": every.model})
    assert torch.equal(found, every.model.get_parameter(name))


class _Experts(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        width, inner = block.down_proj.out_features, block.down_proj.in_features
        self.first = block
        self.second = nn.Module()
        self.second.up = nn.Linear(width, inner)
        self.second.down = nn.Linear(inner, width)
