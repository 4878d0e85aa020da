"""Edits of what the emoji model sees, each with all that is asked about it, drawn by seed."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from easyedit_dualedit.testbed.emoji.drawing import BACKGROUNDS, Picture
from easyedit_dualedit.testbed.emoji.general_questions import GeneralQuestion
from easyedit_dualedit.testbed.emoji.one_hop import Hop, hop_to, text_question
from easyedit_dualedit.testbed.emoji.scenes import SIDES, Asked, Chance
from easyedit_dualedit.testbed.emoji.things import Split, Thing, bystanders
from easyedit_dualedit.testbed.emoji.wordings import FAMILIES, HELD_OUT, TAUGHT, Family

_SHARES: dict[Family, float] = {
    "name": 0.34,
    "left": 0.14,
    "right": 0.14,
    "kind": 0.12,
    "country": 0.16,
    "background": 0.10,
}
"""Of edits, by what they are about."""

_TRIES = 40


@dataclass(frozen=True)
class Case:
    """A record before its pictures are drawn."""

    record: dict[str, Any]
    """MMEdit's fields, VLKEB's `port_new` and `binding`; pictures are named by their field."""
    pictures: dict[str, Picture]
    """By field: `image`, `image_rephrase`, `m_loc`."""
    asked: Asked
    elsewhere: Asked
    """What image locality asks about another scene."""


def draw_cases(
    things: Sequence[Thing],
    general: Sequence[GeneralQuestion],
    split: Split,
    count: int,
    seed: int = 0,
) -> Iterator[Case]:
    """Yield cases; the first of many are those of few.

    In evaluation the same question about the same things returns only when everything has been
    asked, and image locality shows things that no edit is about, so that a thousand edits can be
    kept side by side in one model.

    Args:
        things: of the split.
        general: questions without a picture, of the split.
        split: decides the wordings, and whether the model was trained on the pictures.
        count: how many cases.
        seed: decides everything else.
    """
    source = random.Random(f"emoji {split} {seed}")
    beside = bystanders(things) if split == "eval" else frozenset()
    edited = [thing for thing in things if thing.name not in beside]
    others = [thing for thing in things if thing.name in beside] or things
    chance = Chance(edited, source, unseen=split == "eval")
    bystander_chance = Chance(others, source, unseen=split == "eval")
    used: Counter[tuple[str, ...]] = Counter()
    for _ in range(count):
        asked = chance.asked(_family(source))
        if split == "eval":
            asked = _fresh(chance, source, used)
        yield _case(asked, chance, bystander_chance, source, source.choice(general), split)


def _fresh(chance: Chance, source: random.Random, used: Counter[tuple[str, ...]]) -> Asked:
    most = 0
    while True:
        for _ in range(_TRIES):
            family = _family(source)
            for _ in range(_TRIES):
                asked = chance.asked(family)
                if used[asked.key] <= most:
                    used[asked.key] += 1
                    return asked
        most += 1


def _family(source: random.Random) -> Family:
    return source.choices(FAMILIES, [_SHARES[family] for family in FAMILIES])[0]


def _case(
    asked: Asked,
    chance: Chance,
    bystander_chance: Chance,
    source: random.Random,
    general: GeneralQuestion,
    split: Split,
) -> Case:
    new, background = chance.other_thing(asked), chance.other_background(asked.scene.background)
    scene = asked.scene
    image = chance.picture(scene)
    again = scene
    if asked.family != "background":
        again = replace(scene, background=source.choice(list(BACKGROUNDS)))
    elsewhere = bystander_chance.asked(_family(source), without=[*scene.things, new])
    request, rephrase = _two_wordings(asked.family, source, split)
    hop = None
    if asked.family in ("name", "country", *SIDES):
        hop = hop_to(new, asked.subject, source, asked.side)
    record = {
        "src": request,
        "pred": asked.answer,
        "rephrase": rephrase,
        "alt": asked.answer_about(new, background),
        "loc": general.question,
        "loc_ans": general.answer,
        "m_loc_q": source.choice(_every_wording(elsewhere.family, split)),
        "m_loc_a": elsewhere.answer,
        "port_new": [] if hop is None else [hop.to_dict()],
        "binding": _binding(asked, hop, source),
        "family": asked.family,
    }
    pictures = {
        "image": image,
        "image_rephrase": chance.picture(again, unlike=image),
        "m_loc": bystander_chance.picture(elsewhere.scene),
    }
    return Case(record, pictures, asked, elsewhere)


def _binding(asked: Asked, hop: Hop | None, source: random.Random) -> dict[str, str]:
    """Return questions that tell whether an edit changed a picture's answer or a thing.

    `text_q` is about the true thing, in words. `picture_q` is another question about the same
    picture: `picture_old` is its answer for the true thing, `picture_new` for the new one.
    `beside_q` is about what else is in the picture, and `beside_a` its true answer.
    """
    true = asked.subject
    fields: dict[str, str] = {}
    about = text_question(true)
    if about is not None and asked.family != "background":
        fields["text_q"], fields["text_a"] = about
    if hop is not None and about is not None:
        fields["picture_q"] = hop.question
        fields["picture_old"], fields["picture_new"] = about[1], hop.answer
    beside = _beside(asked)
    fields["beside_q"], fields["beside_a"] = source.choice(TAUGHT[beside.family]), beside.answer
    return fields


def _beside(asked: Asked) -> Asked:
    """Return a question about something in the picture that the edit says nothing of."""
    if asked.family == "background":
        return replace(asked, family="left" if len(asked.scene.things) == 2 else "name")
    if asked.family in SIDES:
        return replace(asked, family="right" if asked.family == "left" else "left")
    return replace(asked, family="background")


def _two_wordings(family: Family, source: random.Random, split: Split) -> tuple[str, str]:
    if split == "train":
        request, rephrase = source.sample(TAUGHT[family], 2)
        return request, rephrase
    return source.choice(TAUGHT[family]), source.choice(HELD_OUT[family])


def _every_wording(family: Family, split: Split) -> tuple[str, ...]:
    return TAUGHT[family] if split == "train" else (*TAUGHT[family], *HELD_OUT[family])
