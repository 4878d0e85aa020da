"""Questions: what protocols ask about a record, and how a case shows it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import write_data
from tiny_editors import picture

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.model.inputs import Query

CLOSE = {"no_image": Query("What is it?", None, "one")}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (record,) = load_records(write_data(tmp_path / "data", 1), tmp_path / "data")
    ported = Query("Where is it?", record.request.image, "there")
    return replace(record, portability=(ported, ported))


def test_only_what_the_protocols_need_is_asked(record: Record):
    own = dict(zip(METRICS, record.queries, strict=True))
    for protocols, more in (
        (("generate", "visedit", "easyedit"), []),
        (("specificity",), ["no_image"]),
        (("portability",), ["portability_0", "portability_1"]),
    ):
        questions = Questions.of(record, protocols, CLOSE)
        assert questions.own == own
        assert list(questions.every) == [*METRICS, *more]


def test_a_case_shows_prompt_picture_and_target(record: Record):
    shown = Questions.of(record, ("specificity",), CLOSE).to_dict()
    assert list(shown) == [*METRICS, "no_image"]
    request = record.request
    assert shown["reliability"] == {
        "prompt": request.prompt,
        "image": "0.png",
        "target": request.target,
    }
    assert shown["no_image"] == {"prompt": "What is it?", "image": None, "target": "one"}


def test_names_of_pictures_are_relative_to_their_folder(record: Record, tmp_path: Path):
    questions = Questions.of(record, ("generate",))
    assert questions.to_dict(tmp_path)["reliability"]["image"] == "data/0.png"
    assert questions.to_dict(tmp_path / "elsewhere")["reliability"]["image"] == "0.png"


def test_a_picture_in_memory_has_no_name_and_of_several_the_first_is_shown(tmp_path: Path):
    several = Query("Which?", (tmp_path / "a.png", tmp_path / "b.png"), "one")
    shown = Questions({"several": several, "memory": Query("What?", picture(), "one")}).to_dict()
    assert [shown[name]["image"] for name in ("several", "memory")] == ["a.png", None]
