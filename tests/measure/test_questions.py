"""Questions: what protocols ask about a record, and how a case shows it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_data import BOUND, write_data
from tiny_editors import picture

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.data.comprehend_edit import Nearest
from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.protocols import OF_SOME_RECORDS, PROTOCOLS
from easyedit_dualedit.measure.questions import (
    Questions,
    asked_protocols,
    digest_of_some,
    require_questions,
)
from easyedit_dualedit.model.inputs import Query

CLOSE = {"no_image": Query("What is it?", None, "one")}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (record,) = load_records(write_data(tmp_path / "data", 1), tmp_path / "data")
    ported = Query("Where is it?", record.request.image, "there")
    binding = Binding.of(BOUND, record.request.image, "{}")
    nearest = Nearest((ported,), (ported,))
    return replace(record, portability=(ported, ported), binding=binding, nearest=nearest)


def test_only_what_the_protocols_need_is_asked(record: Record):
    own = dict(zip(METRICS, record.queries, strict=True))
    for protocols, more in (
        (("generate", "visedit", "easyedit"), []),
        (("specificity",), ["no_image"]),
        (("portability",), ["portability_0", "portability_1"]),
        (("binding",), ["binding_text", "binding_picture", "binding_beside"]),
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


def test_the_answer_of_the_true_thing_is_kept_only_where_binding_is_asked(record: Record):
    assert Questions.of(record, ("binding",)).old == {"binding_picture": BOUND["picture_old"]}
    assert Questions.of(record, ("portability",)).old == {}


def test_what_only_some_records_have_is_asked_without_their_own_questions(record: Record):
    asked = Questions.of_some(record, OF_SOME_RECORDS)
    assert list(asked.every)[:2] == ["portability_0", "portability_1"]
    assert len(asked.every) == 7 and asked.own == {}


def test_protocols_are_asked_where_any_record_has_their_questions(record: Record):
    bare = replace(record, portability=(), binding=None, nearest=None)
    assert asked_protocols([bare, record], PROTOCOLS) == list(PROTOCOLS)
    assert asked_protocols([bare], PROTOCOLS) == list(PROTOCOLS[:4])
    require_questions([bare, record], PROTOCOLS)
    require_questions([bare], PROTOCOLS[:4])
    fields = (
        ("portability", "port_new"),
        ("binding", "binding"),
        ("comprehendedit", "img_topk"),
    )
    for protocol, field in fields:
        with pytest.raises(DataError, match=f"none of the 1 records has the field {field}"):
            require_questions([bare], [protocol])


def test_the_digest_hears_of_every_question_and_answer(record: Record):
    assert digest_of_some([record], PROTOCOLS[:4]) is None
    binding = record.binding
    assert binding is not None
    others = [
        replace(record, portability=record.portability[:1]),
        replace(record, binding=replace(binding, picture_old="the moon")),
        replace(record, binding=replace(binding, text=None)),
    ]
    digests = {digest_of_some([one], PROTOCOLS) for one in (record, *others)}
    assert len(digests) == 4
    assert digest_of_some([record], PROTOCOLS) in digests
