"""Targets drawn from the model's vocabulary, in place of those of some training records.

Adapters that are only ever asked for the answers of a data set may learn these answers. Words that
come from anywhere teach them to carry what an edit says.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.model.letters import WORD_MARKS

_LONGEST = 3
"""Words of a drawn target."""
_MORE_PIECES = (0, 0, 0, 1, 1, 2)
"""How many pieces may follow the first one of a word, as likely as they stand here."""


@dataclass(frozen=True)
class WordPieces:
    """The letters of a vocabulary."""

    first: tuple[str, ...]
    """Pieces that begin a word."""
    inner: tuple[str, ...]
    """Pieces that go on within one."""

    @classmethod
    def of(cls, tokenizer: Any) -> Self:
        """Return the pieces of a tokenizer that are letters alone, sorted."""
        special = set(tokenizer.all_special_tokens)
        pieces = [piece for piece in tokenizer.get_vocab() if piece not in special]
        first = {p[1:] for p in pieces if p.startswith(WORD_MARKS) and p[1:].isascii()}
        inner = {p for p in pieces if not p.startswith(WORD_MARKS) and p.isascii()}
        return cls(_letters(first or inner), _letters(inner))

    def target(self, source: random.Random) -> str:
        """Return a target of one to three words, each of one to three pieces."""
        words = []
        for _ in range(source.randint(1, _LONGEST)):
            more = source.choice(_MORE_PIECES) if self.inner else 0
            words.append("".join([source.choice(self.first), *source.choices(self.inner, k=more)]))
        return " ".join(words)


def drawn_targets(count: int, share: float, tokenizer: Any, seed: int) -> dict[int, str]:
    """Return the drawn targets by the place of their record; the same in every epoch and run.

    Args:
        count: of the records of the training.
        share: of the records whose target is drawn, 0 to 1.
        tokenizer: of the model.
        seed: decides which, and what is drawn.
    """
    pieces = WordPieces.of(tokenizer) if share else WordPieces((), ())
    drawn: dict[int, str] = {}
    for place in range(count if pieces.first else 0):
        source = random.Random(f"target {seed} {place}")
        if source.random() < share:
            drawn[place] = pieces.target(source)
    return drawn


def with_drawn_targets(
    records: Sequence[Record], share: float, tokenizer: Any, seed: int
) -> list[Record]:
    """Return the records, some of them with a drawn target; see `drawn_targets`."""
    drawn = drawn_targets(len(records), share, tokenizer, seed)
    return [
        answering(record, drawn[place]) if place in drawn else record
        for place, record in enumerate(records)
    ]


def answering(record: Record, target: str) -> Record:
    """Return a record whose edit has another target."""
    return replace(
        record,
        request=replace(record.request, target=target),
        text_rephrase=replace(record.text_rephrase, target=target),
        image_rephrase=replace(record.image_rephrase, target=target),
    )


def _letters(pieces: set[str]) -> tuple[str, ...]:
    return tuple(sorted(piece for piece in pieces if len(piece) > 1 and piece.isalpha()))
