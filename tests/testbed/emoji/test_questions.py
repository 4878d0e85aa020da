"""Questions about pictures: their answers and their wordings."""

import random

import pytest

from easyedit_dualedit.testbed.emoji.drawing import draw_pair, draw_single
from easyedit_dualedit.testbed.emoji.questions import (
    FAMILIES,
    TAUGHT_WORDINGS,
    Family,
    Question,
    questions_about,
    word,
)
from easyedit_dualedit.testbed.emoji.things import Thing

THINGS = {
    "tiger": Thing("tiger", "animal", None, ""),
    "Chad flag": Thing("Chad flag", "flag", "Chad", ""),
}


def test_about_one_thing() -> None:
    picture = draw_single("Chad flag", random.Random(0))
    asked = {question.family: question.answer for question in questions_about(picture, THINGS)}
    assert asked == {
        "name": "Chad flag",
        "kind": "flag",
        "country": "Chad",
        "background": picture.background,
    }


def test_about_two_things() -> None:
    picture = draw_pair("tiger", "Chad flag", random.Random(0))
    asked = {question.family: question.answer for question in questions_about(picture, THINGS)}
    assert asked == {
        "left": "tiger",
        "kind left": "animal",
        "right": "Chad flag",
        "kind right": "flag",
        "country right": "Chad",
        "background": picture.background,
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_six_wordings_at_least_all_different_and_all_drawn(family: Family) -> None:
    wordings = TAUGHT_WORDINGS[family]
    assert len(set(wordings)) == len(wordings) >= 6
    source = random.Random(0)
    drawn = {word(Question(family, "x"), source) for _ in range(1000)}
    assert set(wordings) <= drawn
    assert len(drawn) == 3 * len(wordings)


def test_no_wording_stands_for_two_families() -> None:
    wordings = [text for family in FAMILIES for text in TAUGHT_WORDINGS[family]]
    assert len(set(wordings)) == len(wordings)
