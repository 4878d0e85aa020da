"""Which records validate a training: none of their pictures and questions is trained on.

Half of them, where the data allow it, ask for targets that no record trains. A record that would
give a validation record away is left out of the training, but never more than a share of them.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.training_targets import normalised_target
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.train.record_groups import asked_by, record_groups, shown_by

logger = logging.getLogger(__name__)

VALIDATION_RECORDS = 200
"""Records that validate, unless a number is given, and a tenth of all at most."""

_LEFT_OUT = 0.05
"""Records that are neither trained nor validated on, so that targets are never seen, as a share."""
_LARGEST_GROUP = 0.1
"""Records of a group that is held out, as a share of those that validate, or one."""


@dataclass(frozen=True)
class ValidationSplit:
    """Records that train, and records that validate; those left out are in neither."""

    training: list[Record]
    validation: list[Record]
    shares_questions: bool = False
    """Whether too few questions are there to hold any out: pictures alone are then disjoint."""


def validation_count(count: int | None, total: int) -> int:
    """Return how many of `total` records validate.

    Args:
        count: that was asked for; None means `VALIDATION_RECORDS`, a tenth of all at most.
        total: of the records.

    Raises:
        DataError: if more than half of them were asked for.
    """
    if count is None:
        return min(VALIDATION_RECORDS, total // 10)
    if count * 2 > total:
        raise DataError(
            f"{count} validation records are more than half of the {total} records; give more"
            " data, or a smaller number (0 for none)"
        )
    return count


def validation_split(records: Sequence[Record], count: int) -> ValidationSplit:
    """Return records of which about `count` validate, half of them with targets never trained.

    Groups of records that share a picture or a question of an edit are held out whole, small ones
    first of all: validation asks rarer questions than training does. Where all records ask alike,
    groups share pictures only; where all of these are larger, the smallest of at most twice as many
    is held out.

    Args:
        records: of one data set.
        count: of the validation records; 0 holds none out.
    """
    if not count:
        return ValidationSplit(list(records), [])
    largest = max(1, int(_LARGEST_GROUP * count))

    def traits(record: Record) -> list[Hashable]:
        return [*shown_by(record), *(("question", text) for text in asked_by(record))]

    groups = [group for group in record_groups(records, traits) if len(group) <= largest]
    shares_questions = sum(map(len, groups)) < 2 * count
    if shares_questions:
        logger.info("validation asks questions that train, too: too few would be left otherwise")
        every = record_groups(records, shown_by)
        smallest = min(every, key=len)
        groups = [group for group in every if len(group) <= count]
        if not groups and len(smallest) <= min(2 * count, len(records) // 2):
            groups = [smallest]
        if not groups:
            logger.warning(
                "nothing validates: %d records share pictures with each other, which is the"
                " smallest such group, and %d were to validate",
                *(len(smallest), count),
            )
    held, left_out = _chosen(records, groups[::-1], count)
    return ValidationSplit(
        [r for place, r in enumerate(records) if place not in held and place not in left_out],
        [records[place] for place in sorted(held)],
        shares_questions,
    )


def _chosen(
    records: Sequence[Record], groups: Sequence[Sequence[int]], count: int
) -> tuple[set[int], set[int]]:
    """Return the places of the records that validate, and of those that are left out."""
    targets = [normalised_target(record.request.target or "") for record in records]
    asking = Counter(targets)
    spare = int(_LEFT_OUT * len(records))
    held: set[int] = set()
    unseen: set[str] = set()
    # Groups whose targets the fewest others ask for: to keep those from training costs least.
    rare = sorted(groups, key=lambda group: max(asking[targets[place]] for place in group))
    for group in rare:
        if len(held) * 2 >= count:
            break
        new = unseen | {targets[place] for place in group}
        cost = sum(asking[target] for target in new) - len(held) - len(group)
        if cost > spare:
            break
        held.update(group)
        unseen = new
    # The other half asks for what is trained, as far as there is that.
    for is_seen in (True, False):
        for group in groups:
            if len(held) >= count:
                break
            asked = Counter(targets[place] for place in group)
            after = asked + Counter(targets[place] for place in held)
            stays = all(target not in unseen and asking[target] > after[target] for target in asked)
            if not held.intersection(group) and (stays or not is_seen):
                held.update(group)
    rest = {place for place, target in enumerate(targets) if target in unseen} - held
    return held, rest
