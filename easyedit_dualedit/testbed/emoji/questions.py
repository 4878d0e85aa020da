"""The questions about pictures that the emoji model is taught, and their answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from easyedit_dualedit.testbed.emoji.drawing import Picture
from easyedit_dualedit.testbed.emoji.things import Thing

Family = Literal[
    "name",
    "left",
    "right",
    "kind",
    "kind left",
    "kind right",
    "country",
    "country left",
    "country right",
    "background",
]

TAUGHT_WORDINGS: Mapping[Family, tuple[str, ...]] = {
    "name": (
        "What is this?",
        "What is in the picture?",
        "What does the picture show?",
        "Name the thing in the picture.",
        "What can you see here?",
        "Which thing is shown?",
        "What is the name of this?",
        "Tell me what this is.",
    ),
    "left": (
        "What is on the left?",
        "What is on the left side of the picture?",
        "Which thing is on the left?",
        "Name the thing on the left.",
        "What does the left half show?",
        "What can you see on the left?",
        "Tell me what is on the left.",
    ),
    "right": (
        "What is on the right?",
        "What is on the right side of the picture?",
        "Which thing is on the right?",
        "Name the thing on the right.",
        "What does the right half show?",
        "What can you see on the right?",
        "Tell me what is on the right.",
    ),
    "kind": (
        "What kind of thing is this?",
        "Which kind of thing is in the picture?",
        "What kind of thing does the picture show?",
        "Name the kind of thing.",
        "What sort of thing is this?",
        "Which group does this belong to?",
        "Tell me what kind of thing this is.",
    ),
    "kind left": (
        "What kind of thing is on the left?",
        "Which kind of thing is on the left side?",
        "Name the kind of thing on the left.",
        "What sort of thing is on the left?",
        "Which group does the thing on the left belong to?",
        "Tell me what kind of thing is on the left.",
    ),
    "kind right": (
        "What kind of thing is on the right?",
        "Which kind of thing is on the right side?",
        "Name the kind of thing on the right.",
        "What sort of thing is on the right?",
        "Which group does the thing on the right belong to?",
        "Tell me what kind of thing is on the right.",
    ),
    "country": (
        "Which country's flag is this?",
        "Which country has this flag?",
        "Whose flag is this?",
        "Name the country of this flag.",
        "What country does the flag stand for?",
        "Which country does this flag belong to?",
        "Tell me the country of the flag.",
    ),
    "country left": (
        "Which country's flag is on the left?",
        "Which country has the flag on the left?",
        "Whose flag is on the left?",
        "Name the country of the flag on the left.",
        "What country does the left flag stand for?",
        "Tell me the country of the flag on the left.",
    ),
    "country right": (
        "Which country's flag is on the right?",
        "Which country has the flag on the right?",
        "Whose flag is on the right?",
        "Name the country of the flag on the right.",
        "What country does the right flag stand for?",
        "Tell me the country of the flag on the right.",
    ),
    "background": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "Name the color of the background.",
        "What color is behind it?",
        "What is the background color?",
        "Tell me the color of the background.",
    ),
}
"""Wordings that the model is taught; at least six a family."""

PROMPT_FORMS = ("{}", "Question: {} Short answer:", "{} The answer is:")
"""Plain, as EasyEdit's locality wraps it, and as the published evaluators wrap it."""

FAMILIES: tuple[Family, ...] = tuple(TAUGHT_WORDINGS)


@dataclass(frozen=True)
class Question:
    """Something that can be asked about a picture, in any wording of its family."""

    family: Family
    answer: str


def questions_about(picture: Picture, things: Mapping[str, Thing]) -> tuple[Question, ...]:
    """Return everything that can be asked about a picture.

    Args:
        picture: of one thing or two.
        things: all things by name.
    """
    background = Question("background", picture.background)
    if len(picture.things) == 1:
        thing = things[picture.things[0].name]
        asked = [Question("name", thing.name), Question("kind", thing.kind)]
        if thing.country is not None:
            asked.append(Question("country", thing.country))
        return (*asked, background)
    questions: list[Question] = []
    sides: tuple[tuple[Family, Family, Family], ...] = (
        ("left", "kind left", "country left"),
        ("right", "kind right", "country right"),
    )
    for placed, (name, kind, country) in zip(picture.things, sides, strict=True):
        thing = things[placed.name]
        questions += [Question(name, thing.name), Question(kind, thing.kind)]
        if thing.country is not None:
            questions.append(Question(country, thing.country))
    return (*questions, background)


def word(question: Question, source: random.Random) -> str:
    """Return a question as prompt, in a random wording and form that the model is taught."""
    (form,) = source.choices(PROMPT_FORMS, weights=(3, 1, 1))
    return form.format(source.choice(TAUGHT_WORDINGS[question.family]))
