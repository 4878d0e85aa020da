"""Edits without a picture among the training records.

Every record of MMEdit's files asks about a picture. Adapters that only ever see pictures carry
little else: an edit of a question that stands alone says its answer's first word, then nonsense.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record

_OWN = 0.5
"""Share of the records without a picture that ask their own question."""
_TRIES = 20


def with_text_only(records: Sequence[Record], share: float, seed: int) -> list[Record]:
    """Return the records, some of them about a question without a picture.

    One in two of them asks its own question, in both wordings; its image rephrase stays. The others
    ask the text-locality question of another record: the request as a user would type it, the text
    rephrase as the data have it, and the image rephrase beside the record's own picture. Targets
    and locality queries stay. It is the same in every epoch and run.

    Args:
        records: of the training.
        share: of the records that become so, 0 to 1.
        seed: decides which, and what they ask.
    """
    made = []
    for place, record in enumerate(records):
        source = random.Random(f"text only {seed} {place}")
        if source.random() < share:
            is_own = source.random() < _OWN
            question = None if is_own else _question(record, records, source)
            record = _alone(record) if question is None else _asking(record, question)
        made.append(record)
    return made


def _question(record: Record, records: Sequence[Record], source: random.Random) -> str | None:
    """Return another question than the record's own, which has to stay as it is; None if none is
    found."""
    for _ in range(_TRIES):
        found = source.choice(records).text_locality.prompt
        if found != record.text_locality.prompt:
            return found
    return None


def _alone(record: Record) -> Record:
    return replace(
        record,
        request=replace(record.request, image=None),
        text_rephrase=replace(record.text_rephrase, image=None),
    )


def _asking(record: Record, question: str) -> Record:
    typed = question.removeprefix(QUESTION_PREFIX)
    return replace(
        record,
        request=replace(record.request, prompt=typed, image=None),
        text_rephrase=replace(record.text_rephrase, prompt=question, image=None),
        image_rephrase=replace(record.image_rephrase, prompt=typed),
    )
