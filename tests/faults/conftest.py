"""Processes that are killed at any moment; `--kills 50` kills each command as often."""

from collections.abc import Iterator

import pytest
from killable import Killable


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often each command is killed."""
    return int(request.config.getoption("--kills"))


@pytest.fixture(scope="session")
def killable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killable]:
    """What starts commands that are killed."""
    with Killable(tmp_path_factory.getbasetemp()) as started:
        yield started
