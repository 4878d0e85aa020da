"""Edits without a picture among the training records."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import editor_of, fast, write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record, load_records
from easyedit_dualedit.train import gate_stage
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.text_only import with_text_only
from easyedit_dualedit.train.trainer import train


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path, 8), tmp_path)


def is_text_only(record: Record) -> bool:
    return not record.request.shown


def test_such_records_ask_their_own_question_or_that_of_another(records: list[Record]):
    many = [*records, *records]
    kinds = []
    for own, made in zip(many, with_text_only(many, 1.0, seed=0), strict=True):
        assert is_text_only(made) and not made.text_rephrase.shown
        assert [query.target for query in made.queries] == [q.target for q in own.queries]
        assert made.text_locality == own.text_locality
        assert made.image_locality == own.image_locality
        asked = made.text_rephrase.prompt
        kinds.append(asked == own.text_rephrase.prompt)
        if kinds[-1]:
            assert made.request == replace(own.request, image=None)
            assert made.image_rephrase == own.image_rephrase
            continue
        assert asked in {other.text_locality.prompt for other in records}
        assert asked != own.text_locality.prompt, "it has to stay as it is"
        assert made.request.prompt == asked.removeprefix(QUESTION_PREFIX)
        assert made.image_rephrase == replace(own.image_rephrase, prompt=made.request.prompt)
    assert 0 < sum(kinds) < len(kinds)


def test_the_share_is_drawn_by_the_seed(records: list[Record]):
    many = records * 50
    made = with_text_only(many, 0.25, seed=0)
    assert 60 < sum(map(is_text_only, made)) < 140
    assert all(is_text_only(new) or new is old for old, new in zip(many, made, strict=True))
    assert with_text_only(many, 0.25, seed=0) == made != with_text_only(many, 0.25, seed=1)
    assert with_text_only(many, 0.0, seed=0) == many


def test_where_all_have_the_same_question_each_asks_its_own(records: list[Record]):
    alike = [replace(each, text_locality=records[0].text_locality) for each in records]
    for own, made in zip(alike, with_text_only(alike, 1.0, seed=0), strict=True):
        assert made.request == replace(own.request, image=None)


def test_steps_are_taught_by_them_and_the_gate_is_not(
    llava: TinyModel, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    steps: list[Record] = []
    gate: list[Record] = []
    add = BatchGradient.add

    def added(self: BatchGradient, batch: Sequence[Record]) -> StepLosses:
        steps.extend(batch)
        return add(self, batch)

    monkeypatch.setattr(BatchGradient, "add", added)
    monkeypatch.setattr(gate_stage, "make_gate", lambda _, taught, *__, **___: gate.extend(taught))
    config = fast(steps=2, text_only=0.5)
    train(editor_of(llava), records, config, progress=False)
    assert gate == records
    made = with_text_only(records, config.text_only, config.seed)
    assert sorted(map(is_text_only, steps)) == sorted(map(is_text_only, made))
    assert 0 < sum(map(is_text_only, steps)) < len(steps) == len(records)
