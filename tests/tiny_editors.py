"""Tiny models that tests share, editors on them, requests and pictures for them."""

from collections.abc import Iterable
from typing import Any

import torch
from PIL import Image, ImageDraw
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.method.adapter import CrossAttentionAdapter
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import Batch, Query

MODELS: dict[str, TinyModel] = {}
"""Those that tests of this process share."""

PARAMETERS: dict[str, list[torch.nn.Parameter]] = {}
"""Family -> the parameters of its shared model, which are slow to list after every test."""


def shared(family: str) -> TinyModel:
    """Return the tiny model of a family that all tests of this process read."""
    if family not in MODELS:
        MODELS[family] = FAMILIES[family]()
        PARAMETERS[MODELS[family].family] = list(MODELS[family].model.parameters())
    return MODELS[family]


def hooks_of_ours(model: torch.nn.Module) -> list[str]:
    """Return the modules that carry a hook defined in this package."""
    modules = [model]
    for module in modules:  # asked after every test: this is faster than named_modules
        modules.extend(part for part in module._modules.values() if part is not None)
    # Hooks of others stay: transformers leaves its own where it has captured outputs.
    ours = {module for module in modules if any(map(_is_ours, _hooks(module)))}
    return [name for name, module in model.named_modules() if module in ours] if ours else []


def _hooks(module: torch.nn.Module) -> Iterable[object]:
    return (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


def _is_ours(hook: object) -> bool:
    return getattr(hook, "__module__", "").startswith("easyedit_dualedit")


def entering(module: torch.nn.Module, model: Any, batch: Batch) -> torch.Tensor:
    """Return the hidden states that a decoder layer gets in one forward."""
    seen: list[torch.Tensor] = []

    def read(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    handle = module.register_forward_pre_hook(read, with_kwargs=True)
    try:
        with torch.no_grad():
            extra = {} if isinstance(model, torch.nn.Module) else {"layout": batch.layout}
            model(**batch.inputs, **extra)
    finally:
        handle.remove()
    return seen[0]


def picture(colour: str = "red", size: tuple[int, int] = (30, 40)) -> Image.Image:
    """Return a small picture: a coloured disc on grey."""
    image = Image.new("RGB", size, "grey")
    ImageDraw.Draw(image).ellipse((4, 4, 22, 22), fill=colour)
    return image


def request_of(
    prompt: str = "What colour is the circle?", target: str = "blue", colour: str = "red"
) -> Query:
    """Return an edit request on a small picture."""
    return Query(prompt, picture(colour), target)


def tiny_config(**changes: object) -> DualEditConfig:
    """Return a configuration that fits the tiny models."""
    values = {
        "text_layer": 1,
        "vision_layer": 2,
        "width": 16,
        "heads": 2,
        "gate": {"kind": "cosine", "threshold": 0.9},
    }
    return DualEditConfig.from_dict(values | changes)


def trained_editor(tiny: TinyModel, **changes: object) -> DualEditor:
    """Return an editor whose adapters change something: their outputs are random, not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        editor = DualEditor(tiny.model, tiny.processor, tiny_config(**changes))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in editor.adapters.named_parameters():
            if "output" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2.0)
            elif name.endswith("place.weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            elif name.endswith("strength"):
                parameter.fill_(0.01)
    return editor


def silence(adapter: CrossAttentionAdapter) -> None:
    """Let an adapter change nothing."""
    with torch.no_grad():
        for parameter in adapter.output.parameters():
            parameter.zero_()
        if adapter.words is not None:
            adapter.words.strength.zero_()


def backbone_of(tiny: TinyModel) -> Backbone:
    """Return the parts of a tiny model."""
    return Backbone.of(tiny.model)
