"""What tests on EasyEdit share: DualEdit registered with it, and a folder for what it writes."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from easyedit_fixtures import FOLDERS, Workplace, shared_workplace

from easyedit_dualedit.plugin import Host, register, unregister


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    """EasyEdit, with DualEdit registered for the tests of one module."""
    yield register()
    unregister()
    logging.getLogger("easyeditor").handlers.clear()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, since EasyEdit writes its logs there."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=sorted(FOLDERS))
def workplace(request: pytest.FixtureRequest) -> Workplace:
    """A workplace for each family."""
    return shared_workplace(request.param)
