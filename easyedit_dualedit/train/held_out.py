"""Which records teach a gate, and which choose its thresholds: never both, nor their edits.

Records of one data set share pictures and questions: on E-VQA's 6,345, the last 1,000 of the first
6,000 share 955 image-locality questions and 638 of their pictures with the others. A threshold
chosen on what was taught would be too bold. So would one chosen on other pictures of what was
taught: things that a gate has never seen look more alike to it.
"""

import logging
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import wording_of
from easyedit_dualedit.data.training_targets import normalised_target
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.record_groups import (
    pictures_of,
    record_groups,
    shown_by,
)

logger = logging.getLogger(__name__)

_RARE_ANSWER = 0.005
"""Share of the records, or two of them, up to which an answer tells what a picture shows; more
common ones, such as "yes", do not."""


@dataclass(frozen=True)
class Division:
    """Records that teach, and records held out that show none of their pictures or things."""

    teaching: list[Record]
    held_out: list[Record]


def divided(records: Sequence[Record], count: int, *, seed: int = 0) -> Division:
    """Return records of which about `count` are held out, by whole groups that share a picture.

    Records whose pictures the unedited model answers alike belong together as well, where the
    answer is a rare one: they show the same thing. Groups are drawn at random, those of more than
    `count` records only where no others are; fewer are held out where smaller groups are too few.
    Records that teach and ask a question of the held-out ones are left out, if that leaves at least
    half of them: where all records ask "what is this?", none can be.

    Args:
        records: at least two.
        count: of held-out records, at least one.
        seed: of the drawing.
    """
    answers = Counter(normalised_target(record.prediction) for record in records)
    most = max(2.0, _RARE_ANSWER * len(records))
    rare = {answer for answer, times in answers.items() if answer and times <= most}

    def traits(record: Record) -> list[Hashable]:
        answer = normalised_target(record.prediction)
        shown = shown_by(record)
        return [*shown, ("answer", answer)] if answer in rare else shown

    groups = record_groups(records, traits)
    groups = [group for group in groups if len(group) <= count] or groups
    random.Random(seed).shuffle(groups)
    held: list[int] = []
    for group in groups:
        if len(held) >= count or len(held) + len(group) == len(records):
            break
        held += group
    if not held:  # one group: all show the same pictures
        logger.warning("all records share pictures: thresholds are chosen on pictures that taught")
        held = list(range(len(records) - count, len(records)))
    held_out = [records[place] for place in sorted(held)]
    others = [record for place, record in enumerate(records) if place not in set(held)]
    asked = {wording_of(record.request) for record in held_out}
    fresh = [record for record in others if wording_of(record.request) not in asked]
    if len(fresh) * 2 >= len(others):
        return Division(fresh, held_out)
    logger.info("held-out records ask questions that teach, too: too few would be left otherwise")
    return Division(others, held_out)


def unshared(teaching: Sequence[Query], held_out: Sequence[Query]) -> tuple[list[bool], list[bool]]:
    """Return which queries of either side may be used, so that they share no picture or question.

    Those that teach give way, if at least half of them are left; else the held-out ones do. Where
    neither leaves any, all are used, and a warning says so.

    Args:
        teaching: queries of one kind, of the records that teach.
        held_out: of the same kind, of those held out.
    """
    fresh = apart(teaching, held_out)
    if sum(fresh) * 2 >= len(fresh):
        return fresh, [True] * len(held_out)
    fresh = apart(held_out, teaching)
    if not any(fresh):
        logger.warning(
            "all held-out queries of a kind share pictures or questions with taught ones"
        )
        fresh = [True] * len(held_out)
    return [True] * len(teaching), fresh


def apart(queries: Sequence[Query], others: Sequence[Query]) -> list[bool]:
    """Return which queries share neither picture nor question with any of some others."""
    asked = {wording_of(query) for query in others}
    shown = {key for query in others for key in pictures_of(query)}
    return [
        wording_of(query) not in asked and not shown & set(pictures_of(query)) for query in queries
    ]
