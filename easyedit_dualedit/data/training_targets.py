"""The targets that a method was trained on: a later edit asks for one of them or for another."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from easyedit_dualedit.data.records import Record


@dataclass(frozen=True)
class TrainingTargets:
    """Targets of training records. White space around a target and case do not count."""

    targets: frozenset[str]
    words: frozenset[str]
    """What white space sets apart in them."""

    @classmethod
    def of(cls, targets: Iterable[str]) -> Self:
        """Return targets, and the words in them."""
        every = frozenset(map(normalised_target, targets))
        return cls(every, frozenset(word for target in every for word in target.split()))

    def has(self, target: str) -> bool:
        """Return whether a target occurred as a whole."""
        return normalised_target(target) in self.targets

    def has_words(self, target: str) -> bool:
        """Return whether every word of a target occurred, in whatever targets."""
        return self.words.issuperset(normalised_target(target).split())


def normalised_target(target: str) -> str:
    """Return a target as it is compared with others."""
    return target.strip().casefold()


def targets_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Return the targets of the edits of records, each once as it is compared, sorted."""
    return tuple(sorted({normalised_target(record.request.target or "") for record in records}))
