"""What is kept of queries that come again: tensors within a budget of memory, prompts as tokens.

A prompt is tokenised once, whatever its answer.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.storage.tensor_check import digest_of_tensors

PIXELS = ("pixel_values", "pixel_values_videos", "pixel_attention_mask")
"""Inputs that only the vision tower reads."""

PreparedQuery = tuple[Query, dict[str, Tensor], dict[str, Tensor]]
"""A query, the tokens of its prompt, and the inputs that are not one number a token."""

_MOST = 20_000
"""Prompts that are kept, and parts of them each."""
_COMPARED = 4
"""Prompts put together of parts that are compared with whole ones."""


@dataclass(frozen=True)
class Prompt:
    """What the model reads of a query before its answer, without its pixels."""

    tokens: dict[str, Tensor]
    small: dict[str, Tensor]
    """Inputs that are not one number a token."""
    digest: str
    """Of those, of the pixels, and of whether it is read under autocast; may be empty."""

    def name_in(self, batch: Batch, row: int) -> str:
        """Return a digest of all that the model reads of a row, answer included, and of how."""
        real = batch.layout.real[row]
        own = {name: batch.inputs[name][row][real] for name in self.tokens}
        return digest_of_tensors(own, self.digest)


class TokenisedPrompts:
    """Prompts of the questions that were asked last.

    A question about a picture is put together of the picture's beginning in another prompt and of
    the question's end behind another picture, where both are known: the processor, which reads the
    pixels each time, does not run. The first ones are compared with what it makes.
    """

    def __init__(self, encoder: Encoder, *, names: bool = False):
        """Keep nothing yet.

        Args:
            encoder: tokenises.
            names: whether prompts have digests, which takes time.
        """
        self._encoder = encoder
        self._names = names
        self._held: dict[Hashable, Prompt] = {}
        self._beginnings: dict[Hashable, Prompt] = {}
        self._ends: dict[Hashable, dict[str, Tensor]] = {}
        self._to_compare = _COMPARED
        self.joins = True
        """Whether prompts are put together of parts."""

    def get(
        self, query: Query, key: tuple[Hashable, bool], prepared: dict[Hashable, PreparedQuery]
    ) -> Prompt:
        """Return what the model reads of a query; what is tokenised for it goes to `prepared`.

        Args:
            query: whose prompt.
            key: tells its pictures from others, and whether it is read under autocast.
            prepared: by such keys.
        """
        place = (query.prompt, key)
        held = self._held.get(place)
        if held is None:
            held = self._joined(query, key)
            if held is None:
                held = self._tokenised(query, key, prepared)
            elif self._to_compare:
                held = self._compared(held, self._tokenised(query, key, prepared))
            _put(self._held, place, held)
        return held

    def read(
        self,
        queries: Sequence[Query],
        keys: Sequence[tuple[Hashable, bool]],
        prepared: dict[Hashable, PreparedQuery],
    ) -> None:
        """Know some queries from now on; those with one picture, of one size, are read at once.

        Args:
            queries: which.
            keys: of each, as `get` takes it.
            prepared: what is tokenised goes there.
        """
        new: dict[tuple[str, tuple[Hashable, bool]], Query] = {}
        begun: set[Hashable] = set()
        ended: set[str] = set()
        for query, key in zip(queries, keys, strict=True):
            begins = key in begun or key in self._beginnings
            joins = self.joins and begins and (query.prompt in ended or query.prompt in self._ends)
            place, has_one = (query.prompt, key), len(query.shown) == len(query.pictures) == 1
            if has_one and place not in self._held and not joins:
                new[place] = query
                begun.add(key)
                ended.add(query.prompt)
        sizes: dict[tuple[int, int], list[tuple[str, tuple[Hashable, bool]]]] = {}
        for place, query in new.items():  # of one size, they have as much of every input each
            sizes.setdefault(self._encoder.opened.open(query.pictures[0]).size, []).append(place)
        for places in sizes.values():
            prompts, others = self._encoder.read([new[place] for place in places])
            if any(len(value) % len(places) for value in others.values()):
                continue  # `get` reads each alone
            parts = {name: value.chunk(len(places)) for name, value in others.items()}
            for row, (place, tokens) in enumerate(zip(places, prompts, strict=True)):
                other = {name: each[row] for name, each in parts.items()}
                kept = self._kept(new[place], place[1], tokens, other, prepared)
                _put(self._held, place, kept)

    def _tokenised(
        self, query: Query, key: tuple[Hashable, bool], prepared: dict[Hashable, PreparedQuery]
    ) -> Prompt:
        return self._kept(query, key, *self._encoder.tokenised(query), prepared)

    def _kept(
        self,
        query: Query,
        key: tuple[Hashable, bool],
        tokens: dict[str, Tensor],
        other: dict[str, Tensor],
        prepared: dict[Hashable, PreparedQuery],
    ) -> Prompt:
        prepared.setdefault(key, (query, tokens, other))
        small = {name: value for name, value in other.items() if name not in PIXELS}
        digest = digest_of_tensors(other, str(key[1])) if self._names else ""
        seen = self._encoder.vision_positions(tokens["input_ids"]).nonzero()
        if self.joins and len(seen):
            behind = int(seen[-1]) + 1
            start = {name: value[:behind] for name, value in tokens.items()}
            _put(self._beginnings, key, Prompt(start, small, digest))
            _put(self._ends, query.prompt, {n: value[behind:] for n, value in tokens.items()})
        return Prompt(tokens, small, digest)

    def _joined(self, query: Query, key: Hashable) -> Prompt | None:
        """Return a prompt that is put together, if its parts are known."""
        start, end = self._beginnings.get(key), self._ends.get(query.prompt)
        if not self.joins or not query.shown or start is None or end is None:
            return None
        if start.tokens.keys() != end.keys():
            return None
        tokens = {name: torch.cat([value, end[name]]) for name, value in start.tokens.items()}
        return replace(start, tokens=tokens)

    def _compared(self, joined: Prompt, whole: Prompt) -> Prompt:
        self._to_compare -= 1
        parts = ((joined.tokens, whole.tokens), (joined.small, whole.small))
        self.joins = joined.digest == whole.digest and all(
            one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())
            for one, other in parts
        )
        return whole


def _put(held: dict[Hashable, Any], key: Hashable, value: Any) -> None:
    if key not in held and len(held) >= _MOST:
        held.pop(next(iter(held)))
    held[key] = value


class TensorCache:
    """Values by key. A value is a tensor, or a list, tuple or dictionary of values.

    Tensors come back with the same bits, on the same device; anything else as it was.
    """

    def __init__(self, budget: int, *, stays: bool = False):
        """Keep at most `budget` bytes of tensors.

        Args:
            budget: bytes.
            stays: once it is full, keep what is held instead of what comes. Where values are asked
                for over and over in random order, and a few of them fit, those few are then found
                each time; else each is overwritten before it is asked for again.
        """
        self.budget = budget
        self.stays = stays
        self.size = 0
        """Bytes of tensors held."""
        self.is_closed = False
        """Whether nothing more is held: one that `stays` takes nothing more after the first value
        that did not fit."""
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """Return the value that is held for a key, or None."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        """Hold a copy of a value, if it fits at all; a key that is held already stays as it is."""
        if self.is_closed or key in self._held:
            return
        size = size_of(value)
        self.is_closed = self.stays and self.size + size > self.budget
        if self.is_closed or size > self.budget:
            return
        while self.size + size > self.budget:
            self.size -= size_of(self._held.popitem(last=False)[1])
        self._held[key] = _copied(value)
        self.size += size

    def __len__(self) -> int:
        """Return the number of keys held."""
        return len(self._held)


def size_of(value: Any) -> int:
    """Return the bytes of the tensors in a value."""
    return sum(tensor.nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _copied(value: Any) -> Any:
    # A part of a larger tensor would keep all of it alive.
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
