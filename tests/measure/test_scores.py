"""Scores: each protocol's numbers are what the replies before and after say."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.scope import NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION
from easyedit_dualedit.measure.asking import Replies, Reply
from easyedit_dualedit.measure.protocols import PROTOCOLS
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.measure.specificity import SIMILAR_IMAGE, SIMILAR_TEXT
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return load_records(write_data(tmp_path / "data", 2), tmp_path / "data")[0]


def reply(text: str, *predicted: int) -> Reply:
    return Reply(text=text, predicted=predicted)


def test_specificity_is_the_share_of_unchanged_answers_by_family(llava: TinyModel, record: Record):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    kinds = (OTHER_IMAGE, OTHER_QUESTION, NO_IMAGE, SIMILAR_TEXT, SIMILAR_IMAGE)
    close = {kind: Query("What is it?", None, "five") for kind in kinds}
    questions = Questions.of(record, ("specificity",), close)
    before = Replies({kind: reply("five") for kind in kinds})
    after = Replies({**before.to, OTHER_IMAGE: reply("six"), NO_IMAGE: reply("six")})
    scores = score(questions, before, after, encoder, ("specificity",))
    assert scores == {"specificity": {"RI": 0.5, "NI": 0.0, "CI": 1.0}}


def test_portability_has_two_numbers_and_only_where_the_data_has_it(
    llava: TinyModel, record: Record
):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    ids = encoder.target_ids("five")
    query = Query("Where is it?", record.request.image, "five")
    ported = replace(record, portability=(query, query))
    questions = Questions.of(ported, ("portability",))
    right, wrong = reply("Five.", *ids), reply("six", *[0] * len(ids))
    after = Replies({"portability_0": right, "portability_1": wrong})
    scores = score(questions, after, after, encoder, ("portability",))
    assert scores == {"portability": {"exact_match": 0.5, "token_accuracy": 0.5}}
    assert (
        score(Questions.of(record, ("portability",)), after, after, encoder, PROTOCOLS[-1:]) == {}
    )
