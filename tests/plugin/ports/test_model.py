"""A port, called as transformers models are."""

from typing import Any

import pytest
from tiny_models import LAYERS, TinyModel, tiny_llava
from tiny_ports import (
    WIDTH,
    port_vocabulary,
)

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.plugin.ports.model import PortModel, is_port


def test_only_easyedits_own_models_are_ports(port: Any) -> None:
    assert is_port(port)
    llava = tiny_llava().model
    assert not is_port(llava)
    with pytest.raises(BackboneError, match="Blip2OPT and MiniGPT4"):
        PortModel(llava)


def test_the_decoder_layers_are_found_and_may_be_named(port: Any, tiny_one: TinyModel) -> None:
    found = Backbone.of(tiny_one.model)
    path = next(name for name, part in tiny_one.model.named_modules() if part is found.decoder)
    named = Backbone.of(tiny_one.model, BackboneConfig(decoder_layers=f"{path}.layers"))
    assert path.startswith("port.")
    assert len(found.layers) == LAYERS
    assert named.layers == found.layers
    assert found.hidden_size == WIDTH
    text = tiny_one.model.config.get_text_config()
    assert found.image_token_id == text.vocab_size == port_vocabulary(port)


def test_the_ports_weights_are_shared(port: Any, tiny_one: TinyModel) -> None:
    own = {id(parameter) for parameter in port.parameters()}
    assert {id(parameter) for parameter in tiny_one.model.parameters()} == own
    assert len(tiny_one.model.state_dict()) == len(port.state_dict())
    assert not any("dualedit" in name for name in port.state_dict())
