"""The testbed's examples: each is a whole trial about a picture that the model knows."""

import pytest

from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.commands.app_examples import examples_of


@pytest.fixture(scope="module")
def examples() -> list[Trial]:
    return examples_of("testbed", 4)


def test_each_has_all_that_is_asked(examples: list[Trial]):
    assert len(examples) == 4
    for trial in examples:
        assert all(trial.texts().values())
        assert len(trial.asked()) == 4
        assert trial.unrelated != trial.prompt


def test_they_are_the_same_every_time(examples: list[Trial]):
    again = examples_of("testbed", 2)
    assert [trial.texts() for trial in again] == [trial.texts() for trial in examples[:2]]


def test_other_models_have_none():
    assert examples_of("llava-hf/llava-1.5-7b-hf") == []
