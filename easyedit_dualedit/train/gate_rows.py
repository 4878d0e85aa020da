"""Which rows are read for a gate: each distinct query once, questions about one picture together.

Rows of like length make a batch, so that little of it is padding.
"""

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.model.inputs import Query, Shown, shown_key
from easyedit_dualedit.model.pictures import Picture
from easyedit_dualedit.model.query_cache import PreparedQuery
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.processes import Processes

_LONGEST_SHARED = 512
"""Tokens of a row that questions share, unless one of them alone takes half of that."""
_PADDING = 0.2
"""Padding of a batch, as a share of its tokens, unless it has only the fewest rows."""
_FEWEST = 4
_WINDOW = 48
"""Pictures whose pixels are held while their rows are sorted by length."""


@dataclass
class GateRow:
    """One distinct query."""

    query: Query
    pictures: Hashable
    """What tells its pictures, or its video, from others."""
    place: int
    """Among the distinct ones."""
    wants_first: bool = False
    """Whether the first token of its answer is asked for."""


@dataclass(frozen=True)
class RowLength:
    """How many tokens a row has, and how many of them up to its last image token."""

    total: int
    beginning: int


Measure = Callable[[GateRow, dict[Hashable, PreparedQuery]], RowLength]
"""Tokenises a row and returns its length; pixels that were read for it go to the dictionary."""


class ShownKeys:
    """Tells what queries show; a file or a picture in memory is looked up once."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[object, Hashable] = {}

    def __call__(self, query: Query) -> tuple[Hashable, ...]:
        """Return what tells the pictures of a query from others; the query has to stay alive."""
        return tuple(self._key(shown) for shown in query.shown)

    def _key(self, shown: Shown) -> Hashable:
        name: object = shown if isinstance(shown, Path) else id(shown)
        if name not in self._known:
            self._known[name] = shown_key(shown)
        return self._known[name]


def distinct_rows(
    queries: Sequence[Query], first: Sequence[bool] | None = None
) -> tuple[list[GateRow], Tensor]:
    """Return the distinct queries, and which of them each query is, long [n].

    A query without a target is one that has a target, if there is one that asks the same.

    Args:
        queries: in any order.
        first: whose first answer token is asked for.
    """
    key_of = ShownKeys()
    keys = [(query.prompt, key_of(query), query.target) for query in queries]
    answered = {(prompt, pictures): target for prompt, pictures, target in keys if target}
    rows: dict[Hashable, GateRow] = {}
    places = []
    for place, (query, (prompt, pictures, target)) in enumerate(zip(queries, keys, strict=True)):
        target = target or answered.get((prompt, pictures))
        key = (prompt, pictures, target)
        if key not in rows:
            asked = Query(prompt, query.image, target)
            rows[key] = GateRow(asked, pictures, len(rows))
        rows[key].wants_first |= first is not None and first[place]
        places.append(rows[key].place)
    return list(rows.values()), torch.tensor(places)


class GateBatches:
    """Rows by the forwards that read them."""

    def __init__(
        self,
        rows: Sequence[GateRow],
        measure: Measure,
        budget: RowBudget,
        processes: Processes | None = None,
    ):
        """Sort rows.

        Args:
            rows: distinct ones.
            measure: of a row.
            budget: of tokens of a batch, padding included; it may shrink between two batches.
            processes: of which this one reads its share; None means that it reads all.
        """
        self._measure = measure
        self._budget = budget
        groups: dict[Hashable, list[GateRow]] = {}
        for row in rows:
            # Without a picture nothing is shared.
            groups.setdefault(row.pictures or (row.place, None), []).append(row)
        ordered = sorted(groups.values(), key=_expected_length)
        if processes is not None:
            ordered = list(processes.share(ordered))
        self._groups = [
            [group for group in ordered if _kind(group[0].query) == kind]
            for kind in ("pictures", "video", "text")
        ]
        self.shares = True
        """Whether questions about one picture share a row; may change between two batches."""

    def __iter__(self) -> Iterator[tuple[list[GateRow], dict[Hashable, PreparedQuery]]]:
        """Yield the rows of each batch, all with pictures, a video or neither, and pixels."""
        for groups in self._groups:
            for start in range(0, len(groups), _WINDOW):
                prepared: dict[Hashable, PreparedQuery] = {}
                parts = [
                    part
                    for group in groups[start : start + _WINDOW]
                    for part in self._parts(group, prepared)
                ]
                for batch in self._divided(sorted(parts, key=operator.attrgetter("seen", "width"))):
                    yield batch, prepared

    def _divided(self, parts: Sequence["_SharedRow"]) -> Iterator[list[GateRow]]:
        batch: list[GateRow] = []
        widths: list[int] = []
        seen = 0
        for part in parts:
            if batch and not (part.seen == seen and self._fit([*widths, part.width])):
                yield batch
                batch, widths = [], []
            batch, seen = batch + part.rows, part.seen
            widths.append(part.width)
        if batch:
            yield batch

    def _fit(self, widths: Sequence[int]) -> bool:
        """Return whether rows of some widths may be read together."""
        padded = max(widths) * len(widths)
        wastes = len(widths) > _FEWEST and padded > (1 + _PADDING) * sum(widths)
        return padded <= self._budget.tokens and not wastes

    def _parts(
        self, group: Sequence[GateRow], prepared: dict[Hashable, PreparedQuery]
    ) -> list["_SharedRow"]:
        """Return the questions about one picture by the rows that they share."""
        parts: list[_SharedRow] = []
        for row in group:
            length = self._measure(row, prepared)
            if parts and self.shares and length.beginning:
                width = parts[-1].width + length.total - length.beginning
                longest = max(_LONGEST_SHARED, 2 * length.total)
                if width <= min(longest, self._budget.tokens):
                    parts[-1] = parts[-1]._replace(rows=[*parts[-1].rows, row], width=width)
                    continue
            seen = length.beginning if row.query.video is not None else 0
            parts.append(_SharedRow([row], length.total, seen))
        return parts


class _SharedRow(NamedTuple):
    """Questions that share a row."""

    rows: list[GateRow]
    width: int
    """Tokens."""
    seen: int
    """Tokens up to the end of the video, 0 without one: not every model takes videos of several
    lengths at once."""


def _kind(query: Query) -> str:
    if query.video is not None:
        return "video"
    return "pictures" if query.shown else "text"


def _expected_length(group: Sequence[GateRow]) -> tuple[int, int]:
    """Return what orders groups as their number of tokens would, roughly, before it is known."""
    pixels = sum(_pixels(picture) for picture in group[0].query.files)
    texts = sum(len(row.query.prompt) + len(row.query.target or "") for row in group)
    # Most models give pictures of any size, or of about one size, as many tokens.
    return pixels.bit_length(), texts


def _pixels(picture: Picture) -> int:
    if isinstance(picture, Image.Image):
        return picture.width * picture.height
    try:
        with Image.open(picture) as opened:
            return opened.width * opened.height
    except Exception:  # reading it will say what is wrong
        return 0
