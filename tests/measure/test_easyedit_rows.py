"""Rows as EasyEdit writes them: prompt and answer in one text."""

from pathlib import Path

import pytest
import torch
from tiny_editors import picture
from tiny_models import TinyModel

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query

QUERIES = [
    Query("What colour is the circle?", picture("red"), "blue circle"),
    Query("What is two and three?", None, "five"),
]


@pytest.fixture
def encoder(tiny: TinyModel) -> Encoder:
    return Encoder(Backbone.of(tiny.model), tiny.processor)


@pytest.mark.parametrize("query", QUERIES)
def test_a_row_holds_the_prompt_and_the_answer(encoder: Encoder, query: Query):
    row = joined_row(encoder, query)
    batch = encoder.encode([query])
    text = encoder.tokenizer.decode(row.inputs["input_ids"][0])
    assert text == encoder.tokenizer.decode(batch.inputs["input_ids"][0])
    answer = row.labels[0][row.labels[0] != IGNORED]
    assert encoder.tokenizer.decode(answer).strip() == query.target
    assert torch.equal(row.inputs["input_ids"][0, -len(answer) :], answer)
    assert (row.labels[0, : -len(answer)] == IGNORED).all()
    assert ("pixel_values" in row.inputs) == (query.image is not None)


def test_a_model_takes_a_row(encoder: Encoder):
    row = joined_row(encoder, QUERIES[0])
    logits = encoder.backbone.model(**row.inputs).logits
    assert logits.shape[:2] == row.labels.shape
    assert row.inputs["pixel_values"].dtype == next(encoder.backbone.model.parameters()).dtype


def test_white_space_around_an_answer_is_part_of_the_row(encoder: Encoder):
    plain, spaced = (
        joined_row(encoder, Query("What is it?", None, answer)) for answer in ("five", "five \n")
    )
    assert spaced.labels.shape[1] > plain.labels.shape[1]


def test_a_query_without_an_answer_or_picture_is_refused(encoder: Encoder, tmp_path: Path):
    with pytest.raises(DataError, match="no target"):
        joined_row(encoder, Query("What is it?", None))
    with pytest.raises(DataError, match="no picture at"):
        joined_row(encoder, Query("What is it?", tmp_path / "none.png", "five"))
