"""Inputs of all sorts, the same in every run; `--fuzz-cases 50000` tries more."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from nasty import Outcome, outcome_of

SHARES = {
    "yaml": 0.3,
    "records": 0.2,
    "pictures": 0.15,
    "adapters": 0.12,
    "edits": 0.13,
    "commands": 0.1,
}
"""Of all cases, by what is tried."""


@pytest.fixture(scope="session")
def fuzzing(request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """Return the settings of hypothesis for one sort of input."""
    total = request.config.getoption("--fuzz-cases")

    def of(sort: str) -> Any:
        return settings(
            max_examples=max(1, round(total * SHARES[sort])),
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

    return of


@pytest.fixture
def answered() -> Callable[[Callable[[], Any]], Outcome]:
    """Return a function that tries something and holds that it works or is told in one line."""
    return outcome_of
