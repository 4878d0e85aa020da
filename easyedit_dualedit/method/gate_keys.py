"""What a `learned` gate compares: unit vectors of the states of questions and of edits.

`GateProjection` makes them of the last prompt token and the picture, `TextKeys` of the prompt where
there is no picture. Both keep a threshold for each number of edits; how they are trained is in
`train`.
"""

import math
from collections.abc import Callable
from typing import Literal, Self, get_args

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.model.backbone import TurnMarker
from easyedit_dualedit.model.inputs import TokenLayout
from easyedit_dualedit.model.letters import LETTERS_WIDTH, TokenLetters

EDIT_COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of stored edits that a `learned` gate keeps thresholds for."""

STRICTEST = 0.999
"""Threshold, at most: similarities without a picture are distances from 1 in its unit."""

KEY_WIDTH = 128
"""Length of a unit vector that a `learned` gate compares."""

GateForm = Literal["two-layer", "linear", "linear-pair"]
"""What makes a key of the states: two layers; one, which cannot learn single records by heart; or
one that makes a pair of unit vectors, which must both be alike."""

GATE_FORMS: tuple[GateForm, ...] = get_args(GateForm)

_HIDDEN_WIDTH = 256
"""Width of the layer between states and keys, where there are two."""

_LEAST = 1e-6
"""Weight of all tokens of a prompt, at least; a prompt of less has no key."""

_SHARPNESS = 20.0
"""Of the soft minimum of a pair's cosines: it is at most log(2) / 20 = 0.03 above the minimum."""


class Thresholded(nn.Module):
    """A module with thresholds that stay float32 when the module takes another dtype."""

    thresholds: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = self.thresholds
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.thresholds.dtype != torch.float32:
            # In bfloat16 one of 0.9982 is 1.0, which the similarity of no other picture reaches.
            self.thresholds = exact.to(self.thresholds.device, torch.float32)
        return self


class GateProjection(Thresholded):
    """The trained part of a `learned` gate: it makes keys that tell a thousand edits apart.

    A key joins the state of the last prompt token, which knows what is asked, and the mean over the
    image tokens, which hardly changes when a scene is rearranged and tells scenes apart whose
    answer is the same. A key of the form `linear-pair` is two unit vectors, and its similarity the
    soft minimum of their cosines: one cosine lets what is alike in the picture make up for what
    differs in the question. The threshold grows with the number of edits, since each more is one
    more chance to open for a query that concerns none. Which form it has is chosen in training, on
    records that taught it nothing. At LLaVA-1.5-7B size there are 2.1 million parameters in two
    layers or in a pair, 6 % of the adapters', or 1.0 million in one layer.
    """

    def __init__(self, hidden_size: int, form: GateForm = "two-layer"):
        """Build an untrained projection of states of `hidden_size`."""
        super().__init__()
        self.form = form
        self.parts = 2 if form == "linear-pair" else 1
        width = 2 * hidden_size
        layers = (
            [nn.Linear(width, _HIDDEN_WIDTH), nn.GELU(), nn.Linear(_HIDDEN_WIDTH, KEY_WIDTH)]
            if form == "two-layer"
            else [nn.Linear(width, self.parts * KEY_WIDTH)]
        )
        self.layers = nn.Sequential(*layers)
        self.register_buffer("thresholds", torch.full((len(EDIT_COUNTS),), math.nan))

    @property
    def is_trained(self) -> bool:
        """True once it has been trained and its thresholds calibrated."""
        return not math.isnan(self.thresholds[0])

    @property
    def key_width(self) -> int:
        """Length of a key."""
        return self.parts * KEY_WIDTH

    def forward(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, [..., k].

        Args:
            states: states of last prompt tokens, [..., d].
            vision: means of the states of the image tokens at the same layer, [..., d]; zeros, or
                None, without a picture.
        """
        return self.keys(self.inputs(states, vision))

    def keys(self, inputs: Tensor) -> Tensor:
        """Return unit vectors, [..., k], of `inputs`, [..., 2 d]."""
        parts = functional.normalize(self.layers(inputs).unflatten(-1, (self.parts, -1)), dim=-1)
        return parts.flatten(-2) / math.sqrt(self.parts)

    def similarity(self, queries: Tensor, edits: Tensor) -> Tensor:
        """Return the similarity of keys, [b, k] and [n, k], at most 1: [b, n].

        It is the cosine, and of a pair the soft minimum of both cosines.
        """
        if self.parts == 1:
            return queries @ edits.T
        pairs = zip(queries.chunk(2, -1), edits.chunk(2, -1), strict=True)
        one, other = (-2 * _SHARPNESS * (query @ edit.T) for query, edit in pairs)
        return (math.log(2) - torch.logaddexp(one, other)) / _SHARPNESS

    @staticmethod
    def inputs(states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return what the layers see of states: both, normalised each for itself, [..., 2 d].

        Args:
            states: as in `forward`.
            vision: as in `forward`.
        """
        # The norm of zeros is zeros, so a query without a picture needs no case of its own.
        picture = torch.zeros_like(states) if vision is None else vision
        both = functional.layer_norm(torch.stack([states, picture], -2), states.shape[-1:])
        return both.flatten(-2)

    def threshold(self, count: int) -> float:
        """Return the cosine at or above which the best of `count` edits applies; NaN if untrained.

        It is linear in the logarithm of the count between `EDIT_COUNTS`, and constant outside.
        """
        return _interpolated(self.thresholds, count)


class TextKeys(Thresholded):
    """The part of a `learned` gate that compares questions without a picture with edits without.

    The last prompt token hardly tells such questions apart; the mean over all tokens of the prompt
    does, in the directions in which wordings of one question differ least (`train.text_keys`).
    Rare tokens weigh more in it: "the capital of France" and "the capital of Japan" share most.
    Half of a key is how the words are spelled: in lower case a name has other tokens.
    """

    def __init__(self, hidden_size: int, vocabulary: int = 0):
        """Build keys that are not fitted yet.

        Args:
            hidden_size: of the means.
            vocabulary: number of tokens that have a weight; 0 if all weigh alike.
        """
        super().__init__()
        self.mean: Tensor
        self.axes: Tensor
        self.weights: Tensor
        self.letters: Tensor
        """Share of the spelling in a similarity, 0 to 1."""
        self.register_buffer("letters", torch.zeros(()))
        self.register_buffer("weights", torch.ones(vocabulary))
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("axes", torch.zeros(hidden_size, KEY_WIDTH))
        self.register_buffer("thresholds", torch.full((len(EDIT_COUNTS),), math.nan))

    def forward(self, text: Tensor) -> Tensor:
        """Return unit vectors, [..., k], of what `said` returns, [..., d + l]; zeros of zeros.

        Their product is the weighted mean of two cosines.
        """
        spelled = text[..., len(self.mean) :]
        keys = functional.normalize((self.inputs(text) - self.mean) @ self.axes, dim=-1)
        # What has no letters is known by its mean alone.
        share = torch.where(spelled.any(-1, keepdim=True), self.letters, 0.0)
        both = [(1 - share).sqrt() * keys, share.sqrt() * functional.normalize(spelled, dim=-1)]
        return torch.where(text.any(-1, keepdim=True), torch.cat(both, -1), 0.0)

    def inputs(self, text: Tensor) -> Tensor:
        """Return the means in what `said` returns, normalised, [..., d]."""
        means = text[..., : len(self.mean)]
        return functional.layer_norm(means, means.shape[-1:])

    def said(
        self,
        hidden: Tensor,
        layout: TokenLayout,
        turn: TurnMarker | None = None,
        letters: TokenLetters | None = None,
    ) -> Tensor:
        """Return what rows without a picture say, float32 [b, d + l]: the mean over the prompt and
        its spelling; zeros of others.

        What stands before the last turn of a chat has no part. Each state is normalised for
        itself: some tokens' are a hundred times as large as others'.

        Args:
            hidden: states, [b, s, d].
            layout: what each position is.
            turn: tells where the last turn begins; None takes the whole prompt.
            letters: spells tokens; None spells none.
        """
        mask = layout.text & ~layout.vision.any(1, keepdim=True)
        if not bool(mask.any()):
            width = hidden.shape[-1] + LETTERS_WIDTH
            return hidden.new_zeros(len(hidden), width, dtype=torch.float32)
        states = functional.layer_norm(hidden.float(), hidden.shape[-1:])
        mask = mask if turn is None else mask & turn.last_turn(layout)
        mask = mask.to(hidden.device)
        weights = torch.ones_like(mask, dtype=torch.float32)
        if len(self.weights):
            # Tokens that the tokenizer lacks are those of pictures, where the mask is False.
            known = layout.ids.clamp(max=len(self.weights) - 1).to(self.weights.device)
            weights = self.weights[known].float().to(hidden.device)
        weights = torch.where(mask, weights, 0.0)
        means = _mean(states, mask, weights)
        spelled = means.new_zeros(len(means), LETTERS_WIDTH)
        if letters is not None and bool(self.letters):
            spelled = letters.of(layout.ids, weights).to(means)
        return torch.cat([means, spelled], -1)

    def threshold(self, count: int) -> float:
        """Return the cosine at or above which the best of `count` edits applies."""
        return _interpolated(self.thresholds, count)


def _interpolated(thresholds: Tensor, count: int) -> float:
    places = numpy.log([max(1, count), *EDIT_COUNTS])
    return float(numpy.interp(places[0], places[1:], thresholds.tolist()))


def vision_mean(hidden: Tensor, vision: Tensor) -> Tensor:
    """Return the mean state of the image tokens of each row, float32 [b, d]; zeros without any.

    Args:
        hidden: states, [b, s, d].
        vision: True at image tokens, bool [b, s].
    """
    return _mean(hidden.float(), vision.to(hidden.device))


def _mean(values: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    # Left out, not multiplied by zero: NaN may stand at padding.
    kept = torch.where(mask[..., None], values, 0.0)
    if weights is None:
        return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    shares = torch.where(mask, weights, 0.0)
    return (shares[:, None] @ kept)[:, 0] / shares.sum(1, keepdim=True).clamp(min=_LEAST)
