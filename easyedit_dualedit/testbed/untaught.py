"""Answers that no training taught: words from anywhere, of one and of several tokens.

The testbed's own records have 30 different answers, all of them in their training split, so they
cannot tell adapters that carry what an edit says from adapters that recall what they were taught.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from easyedit_dualedit.data.records import Record

_NOUNS = """
nation picture banana garden window river mountain computer elephant cat house butterfly winter
paper dog tree fish cup glass water shark car bird engine castle doctor forest hammer island jacket
kitchen letter market needle ocean pencil rabbit school ticket village wizard bridge candle desert
eagle farmer guitar helmet lemon mirror orchard planet robot sailor tiger uncle valley wagon yacht
zebra
"""
_ADJECTIVES = """
wonderful old broken deep fast sweet tiny heavy quiet golden gentle hollow rapid silver wooden
ancient clever dusty empty frozen
"""
NOUNS, ADJECTIVES = _NOUNS.split(), _ADJECTIVES.split()


def with_untaught_targets(records: Sequence[Record], seed: int = 0) -> list[Record]:
    """Return the records with answers of one to three English words, the same for the same seed.

    Requests and rephrases of a record ask for one answer; everything else stays.

    Args:
        records: of the testbed's evaluation split.
        seed: decides the answers.
    """
    made = []
    for record in records:
        source = random.Random(f"untaught {seed} {record.index}")
        words = [*source.sample(ADJECTIVES, source.choice((0, 0, 1, 2))), source.choice(NOUNS)]
        target = " ".join(words)
        made.append(
            replace(
                record,
                request=replace(record.request, target=target),
                text_rephrase=replace(record.text_rephrase, target=target),
                image_rephrase=replace(record.image_rephrase, target=target),
            )
        )
    return made
