"""Edits whose target was seen in training, apart from those that ask for something new.

An adapter that was trained on "blue" may recall it; one that never saw "squid" has to carry it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.training_targets import TrainingTargets
from easyedit_dualedit.measure.binding import SHARES
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.measure.protocols import PROTOCOLS

GROUPS = ("seen", "unseen", "new_word")
"""Edits with a target seen as a whole in training, never so seen, and, of the latter, with a word
that no target of training has."""

SPLIT_METRICS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("generate", "visedit", "easyedit"), METRICS[:3]),
    "specificity": (),
    "portability": ("exact_match", "token_accuracy"),
    "binding": SHARES,
    "comprehendedit": (),
}
"""Protocol -> its metrics whose answer is the target, or follows from it."""


@dataclass(frozen=True)
class TargetSplit:
    """Which records ask for what was seen in training, by their indices."""

    source: str
    """Whose training it was, and how that is known."""
    seen: tuple[int, ...]
    unseen: tuple[int, ...]
    new_word: tuple[int, ...]
    """Part of `unseen`."""

    @classmethod
    def of(cls, records: Sequence[Record], trained: TrainingTargets, source: str) -> Self:
        """Return how the targets of records relate to those of a training."""
        targets = {record.index: record.request.target or "" for record in records}
        return cls(
            source,
            tuple(index for index, target in targets.items() if trained.has(target)),
            tuple(index for index, target in targets.items() if not trained.has(target)),
            tuple(index for index, target in targets.items() if not trained.has_words(target)),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave."""
        return cls(str(values["source"]), *(tuple(values[group]) for group in GROUPS))

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, ready for JSON."""
        return asdict(self)

    def means(
        self, values: Mapping[int, Mapping[str, Mapping[str, float]]]
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """Return protocol -> group -> metric -> mean, low, high and n, in percent.

        Args:
            values: index of a record -> protocol -> metric -> value, 0 to 1.
        """
        numbers: dict[str, dict[str, dict[str, Any]]] = {}
        for protocol in PROTOCOLS:
            for group in GROUPS:
                rows = [
                    values[index][protocol]
                    for index in getattr(self, group)
                    if protocol in values.get(index, {})
                ]
                found = {
                    name: [row[name] for row in rows if name in row]
                    for name in SPLIT_METRICS[protocol]
                }
                metrics = {
                    name: interval(numbers_of).to_dict()
                    for name, numbers_of in found.items()
                    if numbers_of
                }
                if metrics:
                    numbers.setdefault(protocol, {})[group] = metrics
        return numbers


def told(split: TargetSplit | str) -> dict[str, Any]:
    """Return what a report tells of a split.

    Returns:
        `source`, and how many records each of `GROUPS` has; or, for a text, `absent`: why there is
        no split.
    """
    if isinstance(split, str):
        return {"absent": split}
    return {"source": split.source, **{group: len(getattr(split, group)) for group in GROUPS}}
