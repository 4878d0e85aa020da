"""Prompts of queries as tokens: each is tokenised once, whatever its answer."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.model.picture_features import PIXELS, PreparedQuery
from easyedit_dualedit.storage.tensor_check import digest_of_tensors

_MOST = 20_000
"""Prompts that are kept, and parts of them each."""
_COMPARED = 4


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

    def _tokenised(
        self, query: Query, key: tuple[Hashable, bool], prepared: dict[Hashable, PreparedQuery]
    ) -> Prompt:
        tokens, other = self._encoder.tokenised(query)
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
