"""Held-out records share no picture with those that teach, and no question where that can be."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_editors import picture

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.held_out import divided, unshared


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 12), tmp_path)


def asking(record: Record, prompt: str) -> Record:
    return replace(record, request=replace(record.request, prompt=prompt))


def showing(record: Record, other: Record) -> Record:
    image = other.request.image
    request, rephrase = record.request, record.image_rephrase
    return replace(
        record, request=replace(request, image=image), image_rephrase=replace(rephrase, image=image)
    )


def test_without_shared_pictures_the_last_are_held_out(records: list[Record]):
    division = divided(records, 2)
    assert division.held_out == records[-2:]
    assert division.teaching == records[:-2]


def test_records_that_share_a_picture_stay_together(records: list[Record]):
    # 11 shows the picture of 0, and the rephrase of 3 that of 11.
    records[11] = showing(records[11], records[0])
    third = records[3].image_rephrase
    records[3] = replace(records[3], image_rephrase=replace(third, image=records[0].request.image))
    division = divided(records, 2)
    assert division.held_out == [records[0], records[3], records[11]]
    assert len(division.teaching) == 9


def test_questions_that_are_held_out_do_not_teach_if_enough_are_left(
    records: list[Record], caplog: pytest.LogCaptureFixture
):
    for place in (0, 1, 2, 11):
        records[place] = asking(records[place], "What is this?")
    division = divided(records, 1)
    assert division.held_out == [records[11]]
    assert division.teaching == records[3:11]
    same = [asking(record, "What is this?") for record in records]
    with caplog.at_level(logging.INFO):
        assert divided(same, 2).teaching == same[:-2]
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
