"""Records that validate share neither picture nor question with the training, half no target."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.training_targets import targets_of
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.train.record_groups import asked_by, shown_by
from easyedit_dualedit.train.validation_split import validation_count, validation_split


def answering(record: Record, target: str) -> Record:
    return replace(record, request=replace(record.request, target=target))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Sixty records: of thirty only each has a target of its own, two show one picture."""
    loaded = load_records(write_data(tmp_path, 60), tmp_path)
    own = [answering(record, f"word {record.index}") for record in loaded[::2]]
    made = sorted([*own, *loaded[1::2]], key=lambda record: record.index)
    image = made[58].request.image
    made[3] = replace(made[3], image_rephrase=replace(made[3].image_rephrase, image=image))
    question = made[57].request.prompt
    made[5] = replace(made[5], text_rephrase=replace(made[5].text_rephrase, prompt=question))
    return made


def test_pictures_questions_and_half_of_the_targets_are_apart(records: list[Record]):
    split = validation_split(records, 10)
    assert len(split.validation) == 10 and not split.shares_questions
    for traits in (shown_by, asked_by):
        trained = {trait for record in split.training for trait in traits(record)}
        assert not trained & {trait for record in split.validation for trait in traits(record)}
    unseen = set(targets_of(split.validation)) - set(targets_of(split.training))
    assert sum(record.request.target in unseen for record in split.validation) == 5
    assert len(split.training) == 50, "nothing had to be left out"
    assert sorted(r.index for r in [*split.training, *split.validation]) == list(range(60))


def test_few_records_are_left_out_to_keep_a_target_from_training(records: list[Record]):
    some = [answering(record, f"word {record.index // 2}") for record in records]
    split = validation_split(some, 4)
    left = {record.index for record in [*split.training, *split.validation]}
    assert 60 - len(left) == 2, "the other record of each of two targets"
    assert len(set(targets_of(split.validation)) - set(targets_of(split.training))) == 2
    alike = [answering(record, "red") for record in records]
    split = validation_split(alike, 4)
    assert len(split.training) == 56 and len(split.validation) == 4


def test_where_all_ask_alike_pictures_are_apart(records: list[Record]):
    same = [replace(r, request=replace(r.request, prompt="What is this?")) for r in records]
    split = validation_split(same, 6)
    assert split.shares_questions and len(split.validation) == 6
    trained = {trait for record in split.training for trait in shown_by(record)}
    assert not trained & {trait for record in split.validation for trait in shown_by(record)}


def test_of_one_picture_nothing_validates(records: list[Record]):
    image = records[0].request.image
    one = [
        replace(r, request=replace(r.request, image=image, prompt="What is this?")) for r in records
    ]
    assert validation_split(one, 6).training == one


def test_of_groups_that_are_all_larger_the_smallest_validates(
    records: list[Record], caplog: pytest.LogCaptureFixture
):
    def in_groups_of(size: int) -> list[Record]:
        shown = [records[place - place % size].request.image for place in range(60)]
        return [
            replace(
                record,
                request=replace(record.request, image=image, prompt="What is this?"),
                image_rephrase=replace(record.image_rephrase, image=image),
            )
            for record, image in zip(records, shown, strict=True)
        ]

    split = validation_split(in_groups_of(12), 8)
    assert len(split.validation) == 12 and len(split.training) == 48
    assert len({record.request.image for record in split.validation}) == 1
    assert not caplog.records
    few = in_groups_of(12)
    assert validation_split(few, 5).training == few
    assert "12 records share pictures with each other, which is the smallest" in caplog.text


def test_questions_that_differ_in_case_and_white_space_are_one(records: list[Record]):
    def shouted(record: Record) -> Record:
        prompt = record.request.prompt.upper().replace(" ", "  ")
        return replace(record, request=replace(record.request, prompt=prompt))

    mixed = [shouted(r) if r.index % 2 else r for r in records]
    split = validation_split(mixed, 10)
    assert not split.shares_questions

    def plain(some: list[Record]) -> set[str]:
        return {" ".join(r.request.prompt.lower().split()) for r in some}

    assert split.validation and not plain(split.training) & plain(split.validation)


def test_how_many_validate():
    assert validation_count(None, 6345) == 200
    assert validation_count(None, 500) == 50
    assert validation_count(None, 8) == 0
    assert validation_count(4, 8) == 4
    assert validation_count(0, 6345) == 0
    with pytest.raises(DataError, match="5 validation records are more than half of the 8"):
        validation_count(5, 8)
