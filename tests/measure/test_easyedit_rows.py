"""Rows as EasyEdit writes them: prompt and answer in one text."""

import copy
from pathlib import Path

import pytest
import torch
from tiny_data import write_data
from tiny_editors import picture, shared, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.data.records import METRICS, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.asking import Asker
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.plugin.processors import completed

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


@pytest.mark.parametrize("query", QUERIES)
def test_models_of_every_family_take_rows_as_easyedits_evaluator_has_them_read(
    every: TinyModel, query: Query
):
    encoder = Encoder(Backbone.of(every.model), every.processor)
    row = joined_row(encoder, query)
    # EasyEdit asks processors that this package has completed; of the others nothing is changed.
    reader = completed(copy.copy(every.processor), every.model.config)
    images = {"images": [query.image]} if query.image is not None else {}
    text = encoder.prompt_text(query) + str(query.target)
    expected = reader(text=[text], return_tensors="pt", padding=True, **images)
    assert set(row.inputs) == set(expected) - {"labels"}
    for name, value in row.inputs.items():
        assert torch.equal(value, torch.as_tensor(expected[name]).to(value.dtype)), name
    editor = trained_editor(every, gate={"kind": "open"})
    with torch.no_grad():
        edited = editor.edited(editor.read([query]))
        for model in (every.model, edited):
            assert model(**row.inputs).logits.shape[:2] == row.labels.shape
        assert bool(edited(**row.inputs).logits.isfinite().all())
    again = Encoder(Backbone.of(every.model), reader)
    assert torch.equal(joined_row(again, query).inputs["input_ids"], row.inputs["input_ids"])


@pytest.mark.parametrize("family", ["blip2", "paligemma"])
def test_protocol_easyedit_asks_records_with_questions_without_a_picture(
    family: str, tmp_path: Path
):
    tiny = shared(family)
    editor = trained_editor(tiny, gate={"kind": "open"})
    record = load_records(write_data(tmp_path, 1), tmp_path)[0]
    questions = Questions.of(record, ["easyedit"])
    asker = Asker(editor.encoder, [questions], ["easyedit"])
    (before,) = asker.ask(Edited(tiny.model, 0))
    edited = editor.edited(editor.read([record.request]))
    (after,) = asker.ask(Edited.by_dualedit(edited))
    found = score(questions, before, after, editor.encoder, ["easyedit"])["easyedit"]
    assert set(found) == set(METRICS)
    assert (
        score(questions, before, before, editor.encoder, ["easyedit"])["easyedit"]["text_locality"]
        == 1.0
    )


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
