"""Which records teach a gate, and which choose its thresholds: never both, nor their queries.

Records of one data set share pictures and questions: on E-VQA's 6,345, the last 1,000 of the first
6,000 share 955 image-locality questions and 638 of their pictures with the others. A threshold
chosen on what was taught would be too bold.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.record_groups import pictures_of, record_groups, shown_by

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Division:
    """Records that teach, and records held out that show none of their pictures."""

    teaching: list[Record]
    held_out: list[Record]


def divided(records: Sequence[Record], count: int) -> Division:
    """Return records of which at least `count` are held out, by groups that share a picture.

    The last groups are held out. Records that teach and ask a question of the held-out ones are
    left out, if that leaves at least half of them: where all records ask "what is this?", none
    can be.

    Args:
        records: at least two.
        count: of held-out records, at least one.
    """
    groups = record_groups(records, shown_by)
    held: list[int] = []
    for group in reversed(groups):
        if len(held) >= count or len(held) + len(group) == len(records):
            break
        held += group
    if not held:  # one group: all show the same pictures
        logger.warning("all records share pictures: thresholds are chosen on pictures that taught")
        held = list(range(len(records) - count, len(records)))
    held_out = [records[place] for place in sorted(held)]
    others = [record for place, record in enumerate(records) if place not in set(held)]
    asked = {record.request.prompt for record in held_out}
    fresh = [record for record in others if record.request.prompt not in asked]
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
    prompts = {query.prompt for query in others}
    shown = {key for query in others for key in pictures_of(query)}
    return [
        query.prompt not in prompts and not shown & set(pictures_of(query)) for query in queries
    ]
