"""Held-out records share no picture or thing with those that teach, and no question if possible."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_editors import picture

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.held_out import Division, divided, unshared


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Return records of pictures, questions and answers that no two share."""
    loaded = load_records(write_data(tmp_path, 12), tmp_path)
    return [replace(record, prediction=f"thing {record.index}") for record in loaded]


def asking(record: Record, prompt: str) -> Record:
    return replace(record, request=replace(record.request, prompt=prompt))


def showing(record: Record, other: Record) -> Record:
    image = other.request.image
    request, rephrase = record.request, record.image_rephrase
    return replace(
        record, request=replace(request, image=image), image_rephrase=replace(rephrase, image=image)
    )


def whenever(records: Sequence[Record], count: int, held: int) -> list[Division]:
    """Return the divisions of several drawings that hold a record out, and check every one."""
    divisions = [divided(records, count, seed=seed) for seed in range(40)]
    for division in divisions:
        assert len(division.held_out) >= count
        places = [record.index for record in division.held_out]
        assert places == sorted(places)
        assert not set(places) & {record.index for record in division.teaching}
    return [d for d in divisions if held in [record.index for record in d.held_out]]


def test_any_record_may_be_held_out_and_a_seed_says_which(records: list[Record]):
    for place in range(12):
        drawn = whenever(records, 2, place)
        assert 1 <= len(drawn) < 40
        assert all(len(division.held_out) == 2 for division in drawn)
        assert all(len(division.teaching) == 10 for division in drawn)
    assert divided(records, 2, seed=3) == divided(records, 2, seed=3)


def test_records_that_share_a_picture_stay_together(records: list[Record]):
    # 11 shows the picture of 0, and the rephrase of 3 that of 11.
    records[11] = showing(records[11], records[0])
    third = records[3].image_rephrase
    records[3] = replace(records[3], image_rephrase=replace(third, image=records[0].request.image))
    drawn = whenever(records, 3, 11)
    assert drawn
    for division in drawn:
        assert {0, 3, 11} <= {record.index for record in division.held_out}


def test_records_that_show_the_same_thing_stay_together(records: list[Record]):
    records[5] = replace(records[5], prediction=" Thing 2")
    drawn = whenever(records, 2, 5)
    assert drawn
    for division in drawn:
        assert {2, 5} <= {record.index for record in division.held_out}
        assert len(division.held_out) <= 3


@pytest.mark.parametrize("said", ["yes", ""])
def test_common_answers_and_unknown_ones_bind_nothing(records: list[Record], said: str):
    for place in range(5 if said else 2):
        records[place] = replace(records[place], prediction=said)
    drawn = whenever(records, 2, 0)
    assert drawn
    assert all(len(division.held_out) == 2 for division in drawn)


def test_a_large_group_is_held_out_only_where_no_others_are(records: list[Record]):
    for place in range(1, 5):
        records[place] = showing(records[place], records[0])
    assert whenever(records, 3, 0) == []
    for place in range(6, 12):
        records[place] = showing(records[place], records[5])
    drawn = [divided(records, 2, seed=seed) for seed in range(8)]
    assert {len(division.held_out) for division in drawn} == {5, 7}


def test_questions_that_are_held_out_do_not_teach_if_enough_are_left(
    records: list[Record], caplog: pytest.LogCaptureFixture
):
    for place in (0, 1, 2, 11):
        records[place] = asking(records[place], "What is this?")
    drawn = whenever(records, 1, 11)
    assert drawn
    for division in drawn:
        assert division.held_out == [records[11]]
        assert division.teaching == records[3:11]
    same = [asking(record, "What is this?") for record in records]
    with caplog.at_level(logging.INFO):
        assert len(divided(same, 2).teaching) == 10
    assert "ask questions that teach, too" in caplog.text


def test_where_all_show_one_picture_the_last_are_held_out(
    records: list[Record], caplog: pytest.LogCaptureFixture
):
    same = [showing(record, records[0]) for record in records]
    division = divided(same, 3)
    assert (division.teaching, division.held_out) == (same[:-3], same[-3:])
    assert "all records share pictures" in caplog.text


def queries(*prompts: str) -> list[Query]:
    return [Query(prompt, picture(size=(30 + n, 40))) for n, prompt in enumerate(prompts)]


def test_queries_that_teach_give_way_if_half_are_left():
    assert unshared(queries("a", "b", "c"), queries("x", "b")[1:]) == ([True, False, True], [True])
    shared_picture = [Query("z", picture(size=(32, 40)))]
    assert unshared(queries("a", "b", "c"), shared_picture) == ([True, True, False], [True])


def test_else_those_held_out_give_way(caplog: pytest.LogCaptureFixture):
    teaching = queries("a", "a", "a", "b")
    apart = [Query("a"), Query("c")]
    assert unshared(teaching, apart) == ([True] * 4, [False, True])
    assert unshared(teaching, [Query("a")]) == ([True] * 4, [True])
    assert "share pictures or questions" in caplog.text
