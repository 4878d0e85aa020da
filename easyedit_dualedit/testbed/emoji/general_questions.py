"""Questions without a picture that an edit must leave alone: those shipped, or those of a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from easyedit_dualedit.data.records import QUESTION_PREFIX, read_items
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.things import EVALUATION_SHARE, Split


@dataclass(frozen=True)
class GeneralQuestion:
    """A question of general knowledge and its answer: a record's `loc` and `loc_ans`."""

    question: str
    answer: str


def shipped_questions(split: Split) -> tuple[GeneralQuestion, ...]:
    """Return those of the 500 questions of this package that belong to a split."""
    path = Path(__file__).parent / "general_questions.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    return _of(split, [GeneralQuestion(**json.loads(line)) for line in lines])


def questions_in(path: Path, split: Split) -> tuple[GeneralQuestion, ...]:
    """Return the text-locality questions of a file of records that belong to a split.

    Raises:
        DataError: if the file cannot be read, holds other things, or has none for the split.
    """
    questions: dict[str, GeneralQuestion] = {}
    for place, item in enumerate(read_items(path)):
        given = item if isinstance(item, dict) else {}
        question, answer = given.get("loc"), given.get("loc_ans")
        if not (_is_text(question) and _is_text(answer)):
            raise DataError(
                f"{path}: record {place} has no text in loc and loc_ans; give a file in MMEdit's"
                " format"
            )
        questions.setdefault(_plain(question), GeneralQuestion(question, answer))
    kept = _of(split, list(questions.values()))
    if not kept:
        raise DataError(f"{path} has too few questions for the split {split}; give a larger file")
    return kept


def _of(split: Split, questions: Sequence[GeneralQuestion]) -> tuple[GeneralQuestion, ...]:
    """Return the questions of a split: a fifth is evaluation's, whatever file they come from."""
    return tuple(each for each in questions if _is_held_out(each.question) == (split == "eval"))


def _is_held_out(question: str) -> bool:
    return hashlib.sha256(_plain(question).encode()).digest()[0] % EVALUATION_SHARE == 0


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


def _plain(question: str) -> str:
    return question.strip().casefold().removeprefix(QUESTION_PREFIX).strip()
