"""Measures what the emoji model knows, through its own processor and ``generate``."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyedit_dualedit.testbed.emoji.decoder import OwnAnswer
from easyedit_dualedit.testbed.emoji.drawing import Drawings, Picture, draw_pair, draw_single
from easyedit_dualedit.testbed.emoji.questions import questions_about, word
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.prompts import user_message

NAME, PAIR = "name of a single thing", "name of one of two things"
TEXT = "first four tokens without a picture"
_FIRST = 4
_BATCH = 24
_LONGEST = 14


@dataclass(frozen=True)
class Share:
    """Right answers of a group, in 0..1, and how many were asked for."""

    right: float
    asked: int


@dataclass(frozen=True)
class Asked:
    """A question about a picture, or about none, and its exact answer."""

    picture: Picture | None
    group: str
    prompt: str
    answer: str


def measure(
    model: Any,
    processor: Any,
    things: Sequence[Thing],
    drawings: Drawings,
    own_answers: Sequence[OwnAnswer],
    pictures: int = 200,
    seed: int = 1,
) -> dict[str, Share]:
    """Return the share of exact answers by group of questions.

    Args:
        model: in evaluation mode.
        processor: of the model.
        things: that pictures show.
        drawings: of them.
        own_answers: of the language model, to questions that were not rehearsed.
        pictures: half of them of one thing, half of two; none was ever trained on.
        seed: of pictures and wordings.
    """
    source = random.Random(f"measure {seed}")
    asked = [
        each
        for number in range(pictures)
        for each in _questions(number, {thing.name: thing for thing in things}, source)
    ]
    said = answers(model, processor, drawings, asked, _LONGEST)
    groups: dict[str, list[bool]] = {}
    for each, answer in zip(asked, said, strict=True):
        groups.setdefault(each.group, []).append(answer.strip() == each.answer)
    if own_answers:
        texts = [Asked(None, TEXT, each.question, each.answer) for each in own_answers]
        tokenizer = processor.tokenizer
        for each, answer in zip(
            texts, answers(model, processor, drawings, texts, _FIRST), strict=True
        ):
            first = tokenizer(each.answer, add_special_tokens=False).input_ids[:_FIRST]
            again = tokenizer(answer, add_special_tokens=False).input_ids[:_FIRST]
            groups.setdefault(TEXT, []).append(first == again)
    return {name: Share(sum(each) / len(each), len(each)) for name, each in groups.items()}


def _questions(number: int, things: Mapping[str, Thing], source: random.Random) -> list[Asked]:
    names = list(things)
    if number % 2:
        left, right = source.choices(names, k=2)
        picture = draw_pair(left, right, source, unseen=True)
    else:
        picture = draw_single(source.choice(names), source, unseen=True)
    asked = questions_about(picture, things)
    chosen = source.sample(asked, min(3, len(asked)))
    groups = {"name": NAME, "left": PAIR, "right": PAIR}
    return [
        Asked(
            picture,
            groups.get(each.family, each.family.split()[0]),
            word(each, source),
            each.answer,
        )
        for each in chosen
    ]


@torch.no_grad()
def answers(
    model: Any, processor: Any, drawings: Drawings, asked: Sequence[Asked], longest: int
) -> list[str]:
    """Return the greedy answers to questions, of so many tokens at most."""
    said: list[str] = []
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        images = [drawings.draw(each.picture) for each in part if each.picture is not None]
        chats = [
            processor.apply_chat_template(
                user_message(each.prompt, 0 if each.picture is None else 1),
                add_generation_prompt=True,
                tokenize=False,
            )
            for each in part
        ]
        inputs = processor(images=images or None, text=chats, return_tensors="pt", padding=True)
        if images:
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        rows = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        fresh = rows[:, inputs["input_ids"].shape[1] :]
        said += processor.batch_decode(fresh, skip_special_tokens=True)
    return said
