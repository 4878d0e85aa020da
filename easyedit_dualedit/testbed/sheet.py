"""Exercises as tensors: several questions share one row, and the picture at its start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_dualedit.testbed.architecture import END, IMAGE
from easyedit_dualedit.testbed.prompts import user_message
from easyedit_dualedit.testbed.world import GRID

if TYPE_CHECKING:
    from transformers import LlavaOnevisionProcessor

IMAGE_TOKENS = 2 * GRID * GRID + GRID
"""Image tokens of one picture: the whole, its one tile, and a newline for each row of that."""

_PADDING, _SHARED = -1, 0


@dataclass(frozen=True)
class Exercise:
    """A prompt with its answer."""

    prompt: str
    answer: str
    given: tuple[str, ...] = ()
    """Parts of the answer, in order, that nobody could know and that are not asked for."""


@dataclass(frozen=True)
class Row:
    """Exercises on one picture, given by its number in the gallery, or on none."""

    picture: int | None
    exercises: tuple[Exercise, ...]


@dataclass(frozen=True)
class Sheet:
    """Rows as tensors, padded on the right.

    Each exercise sees the shared start of its row and itself, at the positions that it would have
    alone, so its loss is that of a row of its own.

    Attributes:
        ids: token ids [b, s].
        positions: position ids [b, s].
        visible: which key (last axis) each query sees, bool [b, 1, s, s].
        weights: share of each token in the loss, [b, s]; 0 where it is no part of an answer.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    weights: Tensor


class Scribe:
    """Writes rows of exercises as sheets, in the form in which the processor gives prompts."""

    def __init__(
        self, processor: LlavaOnevisionProcessor, image_tokens: int = IMAGE_TOKENS
    ) -> None:
        """Read the chat form from the processor's own template.

        Args:
            processor: whose tokenizer and template to use.
            image_tokens: of one picture.
        """
        self.tokenizer = processor.tokenizer
        blank = "\N{REPLACEMENT CHARACTER}"
        starts = []
        for pictures in (0, 1):
            chat = processor.apply_chat_template(
                user_message(blank, pictures), add_generation_prompt=True, tokenize=False
            )
            start, end = chat.replace(IMAGE, IMAGE * image_tokens).split(blank)
            starts.append(self._tokens(start))
        self._starts = tuple(starts)
        self._end_of_prompt = self._tokens(end)

    def write(self, rows: Sequence[Row]) -> Sheet:
        """Return the rows as tensors."""
        written = [self._write_row(row) for row in rows]
        length = max(len(ids) for ids, _, _, _ in written)
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id)
        positions = torch.zeros(len(rows), length, dtype=torch.long)
        segments = torch.full((len(rows), length), _PADDING)
        weights = torch.zeros(len(rows), length)
        for number, (row_ids, row_positions, row_segments, row_weights) in enumerate(written):
            ids[number, : len(row_ids)] = torch.tensor(row_ids)
            positions[number, : len(row_ids)] = torch.tensor(row_positions)
            segments[number, : len(row_ids)] = torch.tensor(row_segments)
            weights[number, : len(row_ids)] = torch.tensor(row_weights)
        return Sheet(ids, positions, _visible(segments), weights)

    def _write_row(self, row: Row) -> tuple[list[int], list[int], list[int], list[float]]:
        start = self._starts[0 if row.picture is None else 1]
        ids, positions = list(start), list(range(len(start)))
        segments, weights = [_SHARED] * len(start), [0.0] * len(start)
        for number, exercise in enumerate(row.exercises, start=1):
            prompt = [*self._tokens(exercise.prompt), *self._end_of_prompt]
            answer, asked = self._answer(exercise)
            size = len(prompt) + len(answer)
            ids += [*prompt, *answer]
            positions += range(len(start), len(start) + size)
            segments += [number] * size
            # Between equal weight for all tokens, which would be for captions, and for all answers.
            share = len(answer) ** -0.5
            weights += [0.0] * len(prompt) + [share if each else 0.0 for each in asked]
        return ids, positions, segments, weights

    def _answer(self, exercise: Exercise) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        asked: list[bool] = []
        rest = exercise.answer
        for given in exercise.given:
            before, rest = rest.split(given, 1)
            for text, is_asked in ((before, True), (given, False)):
                tokens = self._tokens(text) if text else []
                ids += tokens
                asked += [is_asked] * len(tokens)
        tokens = self._tokens(rest + END)
        return ids + tokens, asked + [True] * len(tokens)

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids


def _visible(segments: Tensor) -> Tensor:
    length = segments.shape[1]
    queries, keys = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    # A padding query sees padding, for a softmax over nothing is not a number.
    seen = (keys == _SHARED) & (queries != _PADDING) | (keys == queries)
    return (seen & causal)[:, None]
