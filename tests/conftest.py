"""Fixtures shared by all tests; everything runs offline."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from backbone_table import BackboneTable  # noqa: E402
from pretended_device import start_autograd  # noqa: E402
from tiny_editors import MODELS, hooks_of_ours, shared  # noqa: E402
from tiny_families import FAMILIES  # noqa: E402
from tiny_models import TinyModel  # noqa: E402

# Tiny tensors gain nothing from a second thread, and threads that wait for each other cost much.
torch.set_num_threads(1)

start_autograd()

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
    for tiny in MODELS.values():
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

    parser.addoption(
        "--thread-seconds", type=float, default=3.0, help="how long threads share one model"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Record outcomes by family, if asked to."""
    folder = config.getoption("--backbones", default=None)
    if folder:
        config.pluginmanager.register(BackboneTable(Path(folder)), "backbone-table")
