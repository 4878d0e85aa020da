"""How the words of a prompt are spelled, whatever their case.

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

WORD_MARKS = ("Ġ", "▁")
"""What a token begins with that begins a word, in byte-level and in SentencePiece vocabularies."""

_PART = "\N{REPLACEMENT CHARACTER}"
"""What a token decodes to that is a part of a letter alone."""


class TokenLetters:
    """Tells prompts apart by the pairs of letters that their words are written with."""

    def __init__(self, tokenizer: Any):
        """Keep the tokenizer; no token has been looked at yet."""
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}

    def of(self, ids: Tensor, weights: Tensor) -> Tensor:
        """Return weighted sums of spellings, float32 [b, `LETTERS_WIDTH`], on the ids' device.

        A word weighs as much as the heaviest of its tokens.

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
        word, weight = "", 0.0
        for token, share in zip([*tokens, None], [*shares, 0.0], strict=True):
            # What has no weight, and the end, stand between words.
            for letter in self._text(token) if token is not None and share else " ":
                if letter.isalnum():
                    word, weight = word + letter, max(weight, share)
                elif word:
                    total += numpy.float32(weight) * spelling(word)
                    word, weight = "", 0.0
        return total

    def _text(self, token: int) -> str:
        """Return what a token is written as, with a space before it where it begins a word."""
        found = self._texts.get(token)
        if found is None:
            piece = str(self._tokenizer.convert_ids_to_tokens(token))
            text = str(self._tokenizer.decode([token]))
            text = piece if _PART in text else text
            self._texts[token] = found = f"{' ' * piece.startswith(WORD_MARKS)}{text}".casefold()
        return found


def spelling(word: str) -> numpy.ndarray[Any, Any]:
    """Return the hashed pairs of neighbouring letters of a word, or its only one; float32."""
    found = numpy.zeros(LETTERS_WIDTH, numpy.float32)
    for place in range(max(1, len(word) - 1) if word else 0):
        hashed = zlib.crc32(word[place : place + 2].encode())
        found[hashed % LETTERS_WIDTH] += -1.0 if hashed >> _SIGN else 1.0
    return found
