"""Queries of specificity of a run: its processes draw them together, and nobody draws one twice."""

from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_editors import tiny_config
from tiny_models import TinyModel, tiny_llava

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure import close_queries as stored
from easyedit_dualedit.measure import sample_features, specificity
from easyedit_dualedit.measure.close_queries import close_queries
from easyedit_dualedit.measure.run import QUERIES_FOLDER
from easyedit_dualedit.measure.specificity import KINDS, specificity_queries
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.encoder import Encoder


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


@pytest.fixture
def encoder(llava: TinyModel) -> Encoder:
    return DualEditor(llava.model, llava.processor, tiny_config()).encoder


def test_what_is_stored_is_what_is_drawn_and_needs_no_model_again(
    encoder: Encoder, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stored, "TOGETHER", 3)
    monkeypatch.setattr(stored, "_PICTURES", 3)
    monkeypatch.setattr(specificity, "TOGETHER", 3)

    def asked(folder: Path, model: object) -> dict[int, dict[str, object]]:
        return close_queries(records, records, folder, model, drawn_from=["these"], progress=False)

    drawn = asked(tmp_path / "run", lambda: encoder)
    whole = specificity_queries(records, records, encoder, progress=False)
    assert drawn == {record.index: queries for record, queries in zip(records, whole, strict=True)}
    assert list(drawn[0]) == list(KINDS)
    assert asked(tmp_path / "run", lambda: pytest.fail("needs a model")) == drawn
    # A file that is missing is made again, to the same effect, and leaves nothing beside it.
    files = sorted((tmp_path / "run" / QUERIES_FOLDER).rglob("*.*"))
    assert len(files) == 3
    files[1].unlink()
    assert asked(tmp_path / "run", lambda: encoder) == drawn
    assert sorted((tmp_path / "run" / QUERIES_FOLDER).rglob("*.*")) == files


def test_other_samples_are_drawn_from_anew(encoder: Encoder, records: list[Record], tmp_path: Path):
    def of(others: list[Record], name: str) -> dict[int, dict[str, object]]:
        return close_queries(
            records[:2], others, tmp_path, lambda: encoder, drawn_from=[name], progress=False
        )

    few = of(records[:2], "few")
    assert of(records, "all") != few and of(records[:2], "few") == few


def test_what_cannot_be_drawn_is_told_before_a_model_is_loaded(
    records: list[Record], tmp_path: Path
):
    with pytest.raises(DataError, match="give more records"):
        close_queries(
            records[:1],
            records[:1],
            tmp_path,
            lambda: pytest.fail("loads a model"),
            drawn_from=["these"],
            progress=False,
        )


def test_a_picture_is_looked_at_once_and_a_question_asked_once(
    records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    tiny = tiny_llava()
    encoder = DualEditor(tiny.model, tiny.processor, tiny_config()).encoder
    looked_at: list[int] = []
    asked: list[tuple[str, object]] = []
    real, first = sample_features.picture_features, specificity.first_answer_tokens

    def looking(encoder: Encoder, queries: list[object], *rest: object, **more: object) -> object:
        looked_at.append(len(queries))
        return real(encoder, queries, *rest, **more)

    def asking(encoder: Encoder, queries: list[object], size: int) -> object:
        asked.extend((query.prompt, query.image) for query in queries)
        return first(encoder, queries, size)

    monkeypatch.setattr(sample_features, "picture_features", looking)
    monkeypatch.setattr(specificity, "first_answer_tokens", asking)
    twice = [*records, *records]
    specificity_queries(records, twice, encoder, progress=False)
    assert looked_at == [len(records)], "those of the edits are among the samples"
    assert len(asked) == len(set(asked))
