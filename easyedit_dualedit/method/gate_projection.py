"""The trained part of a `learned` gate: the keys that queries and edits are compared by."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

EDIT_COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of stored edits that a `learned` gate keeps thresholds for."""

KEY_WIDTH = 128
"""Length of the keys of a `learned` gate."""

GateForm = Literal["two-layer", "linear"]
"""What makes a key of the states: two layers, or one that cannot learn single records by heart."""

GATE_FORMS: tuple[GateForm, ...] = get_args(GateForm)

_HIDDEN_WIDTH = 256
"""Width of the layer between states and keys, where there are two."""


class GateProjection(nn.Module):
    """The trained part of a `learned` gate: it makes keys that tell a thousand edits apart.

    A key joins the state of the last prompt token, which knows what is asked, and the mean over the
    image tokens, which hardly changes when a scene is rearranged and tells scenes apart whose
    answer is the same. The threshold grows with the number of edits, since each more is one more
    chance to open for a query that concerns none. Which form it has is chosen in training, on
    records that taught it nothing. At LLaVA-1.5-7B size there are 2.1 million parameters in two
    layers, 6 % of the adapters', or 1.0 million in one.
    """

    thresholds: Tensor

    def __init__(self, hidden_size: int, form: GateForm = "two-layer"):
        """Build an untrained projection of states of `hidden_size`."""
        super().__init__()
        self.form = form
        width = 2 * hidden_size
        layers = (
            [nn.Linear(width, KEY_WIDTH)]
            if form == "linear"
            else [nn.Linear(width, _HIDDEN_WIDTH), nn.GELU(), nn.Linear(_HIDDEN_WIDTH, KEY_WIDTH)]
        )
        self.layers = nn.Sequential(*layers)
        self.register_buffer("thresholds", torch.full((len(EDIT_COUNTS),), math.nan))

    @property
    def is_trained(self) -> bool:
        """True once it has been trained and its thresholds calibrated."""
        return not math.isnan(self.thresholds[0])

    def forward(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, [..., k].

        Args:
            states: states of last prompt tokens, [..., d].
            vision: means of the states of the image tokens at the same layer, [..., d]; zeros, or
                None, without a picture.
        """
        keys: Tensor = functional.normalize(self.layers(self.inputs(states, vision)), dim=-1)
        return keys

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
        values: list[float] = self.thresholds.tolist()
        if count <= EDIT_COUNTS[0]:
            return values[0]
        if count >= EDIT_COUNTS[-1]:
            return values[-1]
        upper = next(place for place, each in enumerate(EDIT_COUNTS) if each >= count)
        low, high = math.log(EDIT_COUNTS[upper - 1]), math.log(EDIT_COUNTS[upper])
        share = (math.log(count) - low) / (high - low)
        return values[upper - 1] + share * (values[upper] - values[upper - 1])
