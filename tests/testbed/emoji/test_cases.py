"""Edits by seed: what splits share, how often a question returns, and what the answers are."""

from collections import Counter
from functools import cache

import pytest
from tiny_emoji import tiny_things

from easyedit_dualedit.testbed.emoji.cases import Case, draw_cases
from easyedit_dualedit.testbed.emoji.drawing import BACKGROUNDS
from easyedit_dualedit.testbed.emoji.general_questions import shipped_questions
from easyedit_dualedit.testbed.emoji.records import things_of
from easyedit_dualedit.testbed.emoji.things import Split
from easyedit_dualedit.testbed.emoji.wordings import FAMILIES, HELD_OUT, TAUGHT

SPLITS: tuple[Split, ...] = ("train", "eval")


@cache
def cases_of(split: Split, count: int = 150, seed: int = 0) -> tuple[Case, ...]:
    things = things_of(tiny_things(), split)
    return tuple(draw_cases(things, shipped_questions(split), split, count, seed))


def things_in(case: Case) -> set[str]:
    scenes = (case.asked.scene, case.elsewhere.scene)
    return {thing.name for scene in scenes for thing in scene.things}


def test_the_first_of_many_are_those_of_few_and_another_seed_gives_others():
    assert cases_of("eval", 20) == cases_of("eval")[:20]
    assert cases_of("eval", 20, seed=1) != cases_of("eval", 20)


def test_splits_share_no_thing_no_name_no_country_and_no_general_question():
    train, evaluation = cases_of("train", 600), cases_of("eval")
    assert not set.union(*map(things_in, train)) & set.union(*map(things_in, evaluation))
    for families in (("name", "left", "right"), ("country",)):
        targets = [
            {case.record["alt"] for case in cases if case.asked.family in families}
            for cases in (train, evaluation)
        ]
        assert all(len(some) >= 3 for some in targets)
        assert not set.intersection(*targets)
    asked = [{case.record["loc"] for case in cases} for cases in (train, evaluation)]
    assert not set.intersection(*asked)


def test_image_locality_of_an_evaluation_shows_only_things_that_no_edit_is_about():
    cases = cases_of("eval")
    edited = {thing.name for case in cases for thing in case.asked.scene.things}
    edited |= {str(case.record["alt"]) for case in cases}
    shown = {thing.name for case in cases for thing in case.elsewhere.scene.things}
    assert len(shown) >= 4  # of several kinds, flags among them
    assert not edited & shown


@pytest.mark.parametrize("split", SPLITS)
def test_targets_are_false_and_of_the_same_kind(split: Split):
    things = {thing.name: thing for thing in tiny_things()}
    allowed = {
        "kind": {thing.kind for thing in tiny_things()},
        "country": {thing.country for thing in tiny_things() if thing.country},
        "background": set(BACKGROUNDS),
    }
    for case in cases_of(split):
        record, family = case.record, case.asked.family
        assert record["alt"] in allowed.get(family, set(things))
        assert record["alt"] != record["pred"] == case.asked.answer
        assert record["alt"] not in things_in(case)


@pytest.mark.parametrize("split", SPLITS)
def test_a_rephrased_picture_shows_the_same_by_another_vendor_in_another_place(split: Split):
    for case in cases_of(split):
        image, again = case.pictures["image"], case.pictures["image_rephrase"]
        assert len(image.things) == len(again.things) == len(case.asked.scene.things)
        for one, other in zip(image.things, again.things, strict=True):
            assert one.name == other.name
            assert one.vendor != other.vendor
            assert (one.size, one.row, one.column) != (other.size, other.row, other.column)
        if case.asked.family == "background":
            assert image.background == again.background == case.record["pred"]


def test_evaluation_asks_about_pictures_that_the_model_was_not_trained_on_where_there_are_some():
    for split, wanted in (("train", False), ("eval", True)):
        pictures = [p for case in cases_of(split) for p in case.pictures.values()]
        assert sum(picture.unseen == wanted for picture in pictures) > 0.8 * len(pictures)


def test_wordings_of_evaluation_are_kept_from_training():
    for family in FAMILIES:
        taught, held_out = TAUGHT[family], HELD_OUT[family]
        assert len(taught) >= 6 and len(held_out) >= 4
        assert len({*taught, *held_out}) == len(taught) + len(held_out)
    every = {text for texts in HELD_OUT.values() for text in texts}
    for case in cases_of("train"):
        assert not {case.record[field] for field in ("src", "rephrase", "m_loc_q")} & every
        assert case.record["src"] != case.record["rephrase"]
    for case in cases_of("eval"):
        assert case.record["src"] in TAUGHT[case.asked.family]
        assert case.record["rephrase"] in HELD_OUT[case.asked.family]


def test_every_family_is_drawn_and_evaluation_asks_nothing_twice():
    for split in SPLITS:
        assert set(Counter(case.asked.family for case in cases_of(split))) == set(FAMILIES)
    keys = [case.asked.key for case in cases_of("eval")]
    assert len(set(keys)) == len(keys)


def test_a_question_returns_only_when_all_were_asked():
    few = [thing for thing in tiny_things() if thing.kind in ("animal", "food")][:12]
    few += [thing for thing in tiny_things() if thing.country][:6]
    cases = draw_cases(few, shipped_questions("eval"), "eval", 900)
    counts = Counter(case.asked.key for case in cases if case.asked.family == "name")
    assert max(counts.values()) - min(counts.values()) <= 2


def test_image_locality_is_about_other_things_and_answered_truly():
    for case in cases_of("eval"):
        names = {thing.name for thing in case.asked.scene.things}
        elsewhere = {placed.name for placed in case.pictures["m_loc"].things}
        assert not names & elsewhere
        assert case.record["alt"] not in elsewhere
        assert case.record["m_loc_a"] == case.elsewhere.answer


def test_bindings_tell_the_old_answer_from_the_new_one_and_leave_the_rest():
    kinds = {thing.name: thing.kind for thing in tiny_things()}
    seen: Counter[str] = Counter()
    for case in cases_of("eval"):
        fields, record, family = case.record["binding"], case.record, case.asked.family
        seen.update({field: 1 for field in fields})
        if family == "name" and case.asked.subject.country is None:
            assert fields["text_q"].startswith("What kind of thing ")
            assert record["pred"] in fields["text_q"]
            assert fields["text_a"] == kinds[record["pred"]]
            assert ("picture_q" in fields) == (kinds[record["alt"]] != kinds[record["pred"]])
        if "picture_q" in fields:
            assert fields["picture_old"] == fields["text_a"] != fields["picture_new"]
            assert fields["picture_q"] == record["port_new"][0]["port_q"]
            assert fields["picture_new"] == record["port_new"][0]["port_a"]
        if family in ("left", "right"):
            other = case.asked.scene.things[0 if family == "right" else 1].name
            assert fields["beside_a"] == other
        elif family != "background":
            assert fields["beside_a"] == case.pictures["image"].background
    assert seen["beside_q"] == len(cases_of("eval"))
    assert seen["picture_q"] > 20
