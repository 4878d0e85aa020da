"""Fixtures shared by all tests; everything runs offline."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from backbone_table import BackboneTable  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402
from tiny_families import FAMILIES  # noqa: E402
from tiny_models import TinyModel  # noqa: E402

from easyedit_dualedit.method.config import DualEditConfig  # noqa: E402
from easyedit_dualedit.method.editor import DualEditor  # noqa: E402
from easyedit_dualedit.model.backbone import Backbone  # noqa: E402
from easyedit_dualedit.model.encoder import Batch, Query  # noqa: E402

# Tiny tensors gain nothing from a second thread, and threads that wait for each other cost much.
torch.set_num_threads(1)

_MODELS: dict[str, TinyModel] = {}


def shared(family: str) -> TinyModel:
    """Return the tiny model of a family that all tests of this process read."""
    if family not in _MODELS:
        _MODELS[family] = FAMILIES[family]()
    return _MODELS[family]


pytest_plugins = ("workplace",)
"""Fixtures `work` and `call`, for tests of the command line."""


@pytest.fixture(scope="session", params=["llava", "llava-onevision"])
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """A tiny model of two families; the contract has all of them."""
    return shared(request.param)


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def every(request: pytest.FixtureRequest) -> TinyModel:
    """A tiny model of every family."""
    return shared(request.param)


@pytest.fixture(scope="session")
def llava() -> TinyModel:
    """The tiny LLaVA-1.5, for tests that any family would do for."""
    return shared("llava")


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    """Fail a test that leaves a hook of ours on a shared model."""
    yield
    for tiny in _MODELS.values():
        left = hooks_of_ours(tiny.model)
        assert not left, f"hooks left behind on {tiny.family}: {left}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write what works where, and that ask for real widths."""
    parser.addoption(
        "--backbones", metavar="FOLDER", help="write outcomes by family to backbones.json and .md"
    )

    parser.addoption(
        "--full-width",
        action="store_true",
        help="run the contract on models of full width with four layers (minutes, 12 GB)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Record outcomes by family, if asked to."""
    folder = config.getoption("--backbones", default=None)
    if folder:
        config.pluginmanager.register(BackboneTable(Path(folder)), "backbone-table")


def hooks_of_ours(model: torch.nn.Module) -> list[str]:
    """Return the modules that carry a hook defined in this package."""
    found = []
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if any(getattr(hook, "__module__", "").startswith("easyedit_dualedit") for hook in hooks):
            found.append(name)
    return found


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
    return editor


def backbone_of(tiny: TinyModel) -> Backbone:
    """Return the parts of a tiny model."""
    return Backbone.of(tiny.model)
