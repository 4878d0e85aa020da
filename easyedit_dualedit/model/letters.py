"""How the tokens of a prompt are spelled, whatever their case.

To a tokenizer "France" is one token and "france" are two others; their letters are the same.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

LETTERS_WIDTH = 128
"""Numbers that a spelling has: pairs of letters, hashed."""

_SIGN = 31
"""Bit of a hash that says whether a pair counts upwards or downwards."""


class TokenLetters:
    """Tells prompts apart by the pairs of letters that their tokens are written with."""

    def __init__(self, tokenizer: Any):
        """Keep the tokenizer; no token has been looked at yet."""
        self._tokenizer = tokenizer
        self._known: dict[int, numpy.ndarray[Any, Any]] = {}

    def of(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Return weighted sums of spellings, float32 [b, `LETTERS_WIDTH`], on the ids' device.

        Args:
            ids: token ids, long [b, s].
            weights: of the tokens, [b, s]; those of no weight are not looked at.
        """
        rows = [
            self._sum(tokens, shares)
            for tokens, shares in zip(ids.tolist(), weights.tolist(), strict=True)
        ]
        return torch.from_numpy(numpy.stack(rows)).to(ids.device)

    def _sum(self, tokens: Sequence[int], shares: Sequence[float]) -> numpy.ndarray[Any, Any]:
        total = numpy.zeros(LETTERS_WIDTH, numpy.float32)
        for token, share in zip(tokens, shares, strict=True):
            if share:
                total += numpy.float32(share) * self._spelling(token)
        return total

    def _spelling(self, token: int) -> numpy.ndarray[Any, Any]:
        found = self._known.get(token)
        if found is None:
            text = str(self._tokenizer.decode([token])).casefold()
            self._known[token] = found = spelling(text)
        return found


def spelling(text: str) -> numpy.ndarray[Any, Any]:
    """Return the hashed pairs of neighbouring letters and digits, or the only one; float32."""
    letters = "".join(letter for letter in text if letter.isalnum())
    found = numpy.zeros(LETTERS_WIDTH, numpy.float32)
    for place in range(max(1, len(letters) - 1) if letters else 0):
        hashed = zlib.crc32(letters[place : place + 2].encode())
        found[hashed % LETTERS_WIDTH] += -1.0 if hashed >> _SIGN else 1.0
    return found
