"""Fixtures shared by all tests; everything runs offline."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Also for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from backbone_table import BackboneTable  # noqa: E402
from pretended_device import start_autograd  # noqa: E402
from tiny_editors import MODELS, PARAMETERS, hooks_of_ours, shared  # noqa: E402
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
def _nothing_left() -> Iterator[None]:
    """Fail a test that leaves a hook of ours, or a gradient, on a shared model."""
    yield
    for tiny in MODELS.values():
        left = hooks_of_ours(tiny.model)
        assert not left, f"hooks left behind on {tiny.family}: {left}"
        with_gradient = [each.shape for each in PARAMETERS[tiny.family] if each.grad is not None]
        if with_gradient:
            tiny.model.zero_grad(set_to_none=True)  # only the test that left them is to fail
        assert not with_gradient, f"gradients left behind on {tiny.family}: {with_gradient}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    # torch.manual_seed keeps a traceback for each kind of device that is not there.
    torch.default_generator.manual_seed(0)


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later collection of garbage."""
    _leave_out_what_lives()


@pytest.fixture(autouse=True, scope="module")
def _small_collections() -> Iterator[None]:
    """Leave what outlives a file, shared models and late imports, out of later collections too.

    A run of the benchmark collects between methods: of a million objects in 0.4 seconds each time.
    """
    yield
    _leave_out_what_lives()


def _leave_out_what_lives() -> None:
    gc.collect()
    gc.freeze()


LONG = (
    "plugin/test_contract.py",
    "devices/test_training.py",
    "plugin/test_families.py",
    "commands/test_benchmark.py",
    "method/test_compiled_models.py",
    "commands/test_parser.py",
    "method/test_contract.py",
    "benchmarks/test_speed.py",
    "commands/test_demo.py",
    "benchmarks/test_device.py",
)
"""Files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first: none is then left to one worker when the others are done."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return next((place for place, name in enumerate(LONG) if path.endswith(name)), len(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker of `-n` whole files, so that what a file's tests share is made once."""
    if config.getoption("dist") != "load":
        return None  # another way was asked for
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that write what works where, and that ask for real widths."""
    parser.addoption(
        "--backbones", metavar="FOLDER", help="write outcomes by family to backbones.json and .md"
    )

    parser.addoption(
        "--launchers",
        action="store_true",
        help="train and evaluate under torchrun and accelerate launch (two minutes)",
    )

    parser.addoption(
        "--full-width",
        action="store_true",
        help="run the contract on models of full width with four layers (minutes, 12 GB)",
    )

    parser.addoption(
        "--thread-seconds", type=float, default=3.0, help="how long threads share one model"
    )

    parser.addoption(
        "--fuzz-cases", type=int, default=2000, help="wrong inputs of all sorts to try"
    )

    parser.addoption(
        "--kills", type=int, default=1, help="times that each command is killed at a random moment"
    )

    parser.addoption(
        "--adds", type=int, default=150, help="edits that are added one by one, against the clock"
    )

    parser.addoption(
        "--screenshots", metavar="FOLDER", help="write pictures of the page in a browser"
    )

    parser.addoption(
        "--writing-seconds", type=float, default=2.5, help="how long eight processes add edits"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Record outcomes by family, if asked to."""
    folder = config.getoption("--backbones", default=None)
    if folder and config.getoption("numprocesses", default=None):
        raise pytest.UsageError("--backbones counts in one process; leave out -n")
    if folder:
        config.pluginmanager.register(BackboneTable(Path(folder)), "backbone-table")
