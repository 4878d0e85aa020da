"""Processes that are killed at any moment; `--kills 50` kills each command as often."""

import pytest


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often each command is killed."""
    return int(request.config.getoption("--kills"))
