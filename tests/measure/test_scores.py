"""Scores: each protocol's numbers are what the replies before and after say."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import BOUND, write_data
from tiny_models import TinyModel

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.scope import NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION
from easyedit_dualedit.measure.asking import Replies, Reply
from easyedit_dualedit.measure.binding import (
    BESIDE,
    BESIDE_UNTOUCHED,
    PICTURE,
    SHARES,
    TEXT,
    TEXT_UNTOUCHED,
)
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
    assert score(Questions.of(record, ("portability",)), after, after, encoder, PROTOCOLS[4:]) == {}


@pytest.mark.parametrize(
    ("said", "picture"),
    [
        ("The sun.", (1.0, 0.0, 0.0)),
        ("the sea", (0.0, 1.0, 0.0)),
        ("the sun and the sea", (0.0, 0.0, 1.0)),
    ],
)
def test_binding_tells_old_new_and_neither_apart_and_what_must_stay(
    llava: TinyModel, record: Record, said: str, picture: tuple[float, ...]
):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    fields = {**BOUND, "picture_old": "the sun"}
    bound = replace(record, binding=Binding.of(fields, record.request.image, "{}"))
    questions = Questions.of(bound, ("binding",))
    before = Replies({TEXT: reply("square"), PICTURE: reply("the sun"), BESIDE: reply("a star")})
    after = Replies({TEXT: reply("square"), PICTURE: reply(said), BESIDE: reply("A star")})
    values = score(questions, before, after, encoder, ("binding",))["binding"]
    assert tuple(values[metric] for metric in SHARES) == picture
    # The unedited model's own answer counts, right or wrong, to the letter.
    assert (values[TEXT_UNTOUCHED], values[BESIDE_UNTOUCHED]) == (1.0, 0.0)


def test_binding_counts_only_what_a_record_asks(llava: TinyModel, record: Record):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    fields = {name: BOUND[name] for name in ("text_q", "text_a")}
    bound = replace(record, binding=Binding.of(fields, record.request.image, "{}"))
    replies = Replies({TEXT: reply("square")})
    asked = Questions.of(bound, ("binding",))
    assert score(asked, replies, replies, encoder, ("binding",)) == {
        "binding": {TEXT_UNTOUCHED: 1.0}
    }
    nothing = Questions.of(record, ("binding",))
    assert score(nothing, replies, replies, encoder, ("binding",)) == {}
