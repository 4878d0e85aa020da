"""Fixtures for what runs on a pretended device: the device, and a model of each family on it."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from pretended_device import CAN_PRETEND, pretended_device
from tiny_data import write_data
from tiny_devices import NAMES, Subject
from tiny_editors import trained_editor
from tiny_families import FAMILIES

from easyedit_dualedit.data.records import Record, load_records


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """The pretended device, for the length of a test."""
    if not CAN_PRETEND:
        pytest.skip("this torch has no devices in Python")
    with pretended_device() as device:
        yield device


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Records to train on and to ask about."""
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder, 6), folder)


@pytest.fixture(scope="session")
def subject_of(records: list[Record]) -> Callable[[str], Subject]:
    """Returns the subject of a family, which is made once."""

    @cache
    def made(family: str) -> Subject:
        with pretended_device() as device:
            tiny = FAMILIES[family]()
            tiny.model.to(device)
            return Subject(tiny, trained_editor(tiny), records)

    return made


@pytest.fixture(params=NAMES)
def subject(request: pytest.FixtureRequest, subject_of: Callable[[str], Subject]) -> Subject:
    """The subject of each family."""
    return subject_of(request.param)


@pytest.fixture
def llava(subject_of: Callable[[str], Subject]) -> Subject:
    """The subject of one family, for what no family changes."""
    return subject_of("llava")
