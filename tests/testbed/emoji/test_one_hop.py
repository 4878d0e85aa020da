"""What follows from an edit in one step, and what is asked in words."""

import random

import pytest
from tiny_emoji import tiny_things

from easyedit_dualedit.testbed.emoji.one_hop import capital_of, country_code, hop_to, text_question
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.emoji.wordings import TAUGHT

THINGS = {thing.name: thing for thing in tiny_things()}
TIGER = Thing("tiger", "animal", None, "1f405.png")
SKIS = Thing("skis", "sport", None, "1f3bf.png")


def test_after_a_flag_comes_the_capital():
    hop = hop_to(THINGS["Chad flag"], THINGS["Peru flag"], random.Random(0))
    assert hop is not None
    assert hop.to_dict() == {
        "port_type": "capital",
        "port_edit_q": "What is the capital of Chad?",
        "port_edit_a": "N'Djamena",
        "port_q": hop.question,
        "port_a": "N'Djamena",
    }
    assert "capital" in hop.question and "Chad" not in hop.question


def test_after_a_thing_comes_of_which_kind_it_is():
    hop = hop_to(TIGER, THINGS["bus"], random.Random(0))
    assert hop is not None and hop.kind == "kind"
    assert hop.question in TAUGHT["kind"]
    assert hop.answer == "animal"
    assert hop.text_question == "What kind of thing is a tiger?"
    aside = hop_to(TIGER, THINGS["bus"], random.Random(0), side="left")
    assert aside is not None and "on the left" in aside.question


@pytest.mark.parametrize(
    ("new", "true"),
    [
        (THINGS["cat"], THINGS["dog"]),  # the answer is the same before and after
        (THINGS["South Africa flag"], THINGS["Peru flag"]),  # has three capitals
        (THINGS["Chad flag"], TIGER),  # a tiger has no capital
    ],
)
def test_where_nothing_follows_for_sure_nothing_is_asked(new: Thing, true: Thing):
    assert all(hop_to(new, true, random.Random(seed)) is None for seed in range(10))


def test_questions_in_words_have_the_article_that_a_name_takes():
    assert text_question(TIGER) == ("What kind of thing is a tiger?", "animal")
    assert text_question(THINGS["eel"]) == ("What kind of thing is an eel?", "animal")
    assert text_question(SKIS) == ("What kind of thing are skis?", "sport")
    assert text_question(THINGS["bus"]) == ("What kind of thing is a bus?", "vehicle")
    assert text_question(THINGS["rice"]) == ("What kind of thing is rice?", "food")
    assert text_question(THINGS["Cuba flag"]) == ("What is the capital of Cuba?", "Havana")
    assert text_question(THINGS["South Africa flag"]) is None


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("1f1f9-1f1e9.png", "TD"),
        ("1f405.png", ""),
        ("1f3f4-e0067-e0062-e0065-e006e-e0067-e007f.png", ""),
        ("1f43b-200d-2744-fe0f.png", ""),
        ("0023-fe0f-20e3.png", ""),
    ],
)
def test_a_flags_drawing_is_named_by_its_country(image: str, code: str):
    assert country_code(image) == code


def test_capitals_are_of_countries_and_of_nothing_else():
    assert capital_of(TIGER) is None
    missing = [n for n, thing in THINGS.items() if thing.country and not capital_of(thing)]
    assert missing == ["South Africa flag"]
