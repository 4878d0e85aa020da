"""What tests of EasyEdit's methods as rows share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import TinyModel, tiny_llava, tiny_llava_onevision


@pytest.fixture(params=[tiny_llava, tiny_llava_onevision])
def fresh(request: pytest.FixtureRequest) -> TinyModel:
    """A tiny model that no other test reads."""
    model: TinyModel = request.param()
    return model


@pytest.fixture
def nothing_written(elsewhere: Path) -> Iterator[None]:
    """Fails a test that has written to the working folder."""
    yield
    assert not list(elsewhere.iterdir()), "something was written to the working folder"
