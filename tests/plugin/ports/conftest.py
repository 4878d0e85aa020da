"""Ports of EasyEdit's, and adapters for them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in_ports import stand_in
from tiny_editors import hooks_of_ours, trained_editor
from tiny_models import TinyModel
from tiny_ports import HAVE_PORTS, NAMES, tiny_port

from easyedit_dualedit.plugin.ports.model import PortModel
from easyedit_dualedit.plugin.ports.processor import PortProcessor


@pytest.fixture(params=sorted(NAMES))
def port(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A tiny port or what stands in for it, which no test may leave a hook on."""
    if HAVE_PORTS:
        request.getfixturevalue("host")
        request.getfixturevalue("elsewhere")
    built = tiny_port(request.param) if HAVE_PORTS else stand_in(request.param)
    yield built
    assert not hooks_of_ours(built)


@pytest.fixture
def tiny_one(port: Any) -> TinyModel:
    """The port as a transformers model, with its processor."""
    model = PortModel(port)
    return TinyModel(type(port).__name__, model, PortProcessor(model))


@pytest.fixture
def archive(tiny_one: TinyModel, tmp_path: Path) -> Path:
    """Saved adapters that change answers, with a gate that opens for what is very similar."""
    folder = tmp_path / "adapters"
    trained_editor(tiny_one, gate={"kind": "cosine", "threshold": 0.9999}).save(folder)
    return folder
