"""Edits of two holders, put together by when they were made, with the answers that still count."""

from dataclasses import replace

import torch

from easyedit_dualedit.method.joined_edits import joined
from easyedit_dualedit.method.stored_edit import Provenance, StoredEdit


def _edit(id_: str, second: int, answer: str | None = None, prompt: str = "What?") -> StoredEdit:
    about = Provenance(
        f"2026-01-01T00:00:{second:02}+00:00", prompt, f"target of {id_}", (), answer
    )
    return StoredEdit(id_, about, torch.zeros(1), {})


def _answers(edits: list[StoredEdit]) -> dict[str, str | None]:
    return {edit.id: edit.provenance.answer for edit in edits}


def test_the_older_comes_first_and_those_of_one_second_stay_in_order():
    edits = [_edit("c", 3), _edit("a", 1), _edit("b2", 2), _edit("b1", 2)]
    assert [edit.id for edit in joined(edits)] == ["a", "b2", "b1", "c"]


def test_an_answer_that_one_side_alone_knows_is_kept():
    asked, fresh = _edit("a", 1, "yes"), _edit("a", 1)
    assert _answers(joined([fresh], [fresh], [asked])) == {"a": "yes"}
    assert _answers(joined([asked], [asked], [fresh])) == {"a": "yes"}
    own = replace(fresh, provenance=replace(fresh.provenance, answer="own"))
    assert _answers(joined([fresh], [own], [asked])) == {"a": "own"}


def test_an_answer_does_not_outlive_an_edit_of_its_question_that_came_or_went():
    first, second = _edit("a", 1, "as a alone"), _edit("b", 2, "as b alone")
    other = _edit("c", 2, "stays", prompt="Where?")
    assert _answers(joined([first, second, other], [first], [second, other])) == {
        "a": None,
        "b": None,
        "c": "stays",
    }
    both = [_edit("a", 1, "b wins"), _edit("b", 2, "b wins")]
    assert _answers(joined([both[0]], both, [_edit("a", 1)])) == {"a": None}
    assert _answers(joined(both[:1], both, [first])) == {"a": "as a alone"}
