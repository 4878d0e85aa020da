"""What a `learned` gate compares: keys that tell a thousand edits apart.

A key joins two states of the text layer: that of the last prompt token, which knows what is asked,
and the mean over the image tokens, which hardly changes when a scene is rearranged and tells scenes
apart whose answer is the same. Both precede every target token, so no label can reach a key.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

KEY_WIDTH = 128
"""Length of the vectors that are compared."""

HIDDEN_WIDTH = 256
"""Width of the layer between states and keys."""

EDIT_COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
"""Numbers of stored edits that thresholds are kept for."""

_MARKS = tuple(math.log(count) for count in EDIT_COUNTS)


class GateProjection(nn.Module):
    """Turns states into keys, and says how similar two keys must be among how many edits.

    The threshold grows with the number of edits, since each more is one more chance to open for a
    query that concerns none. At LLaVA-1.5-7B size there are 2.1 million parameters, 6 % of the
    adapters'.
    """

    thresholds: Tensor

    def __init__(self, hidden_size: int):
        """Build an untrained projection of states of `hidden_size`."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * hidden_size, HIDDEN_WIDTH),
            nn.GELU(),
            nn.Linear(HIDDEN_WIDTH, KEY_WIDTH),
        )
        self.register_buffer("thresholds", torch.full((len(EDIT_COUNTS),), math.nan))
        self._seen: tuple[Tensor, int, tuple[float, ...]] | None = None

    @property
    def is_trained(self) -> bool:
        """True once it has been trained and its thresholds calibrated."""
        return not math.isnan(self._values[0])

    def forward(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, [..., k].

        Args:
            states: states of last prompt tokens, [..., d].
            vision: means of the states of the image tokens at the same layer, [..., d]; zeros, or
                None, without a picture.
        """
        # The norm of zeros is zeros, so a query without a picture needs no case of its own.
        picture = torch.zeros_like(states) if vision is None else vision
        both = functional.layer_norm(torch.stack([states, picture], -2), states.shape[-1:])
        keys: Tensor = functional.normalize(self.layers(both.flatten(-2)), dim=-1)
        return keys

    def bound(self) -> Callable[[Tensor], Tensor]:
        """Return a function that makes the key of one query at less than half the time.

        It takes both states of `forward`, one above the other, [2, d], and returns a vector in the
        direction of the key, [k]. It reads the weights as they lie now, without gradients: calls
        of modules, products with matrices of one row, and the division by the length take longer
        than the rest.
        """
        inner, inner_bias, outer, outer_bias = (each.detach() for each in self.layers.parameters())
        width = (inner.shape[1] // 2,)
        # gelu(x) = sqrt(1/2) (y + y erf(y)) with y = sqrt(1/2) x, the factors put into the weights,
        # which lie by columns, as a product with one vector reads them best.
        half = math.sqrt(0.5)
        inner, outer = (half * each.T.contiguous().T for each in (inner, outer))
        inner_bias = half * inner_bias

        def key(both: Tensor) -> Tensor:
            states = torch.layer_norm(both, width).view(-1)
            hidden = torch.addmv(inner_bias, inner, states)
            return torch.addmv(outer_bias, outer, torch.addcmul(hidden, hidden, torch.erf(hidden)))

        return key

    def threshold(self, count: int) -> float:
        """Return the cosine at or above which the best of `count` edits applies; nan if untrained.

        It is linear in the logarithm of the count between `EDIT_COUNTS`, and constant outside.
        """
        values = self._values
        if count <= EDIT_COUNTS[0]:
            return values[0]
        if count >= EDIT_COUNTS[-1]:
            return values[-1]
        place = math.log(count)
        upper = next(i for i, each in enumerate(EDIT_COUNTS) if each >= count)
        share = (place - _MARKS[upper - 1]) / (_MARKS[upper] - _MARKS[upper - 1])
        return values[upper - 1] + share * (values[upper] - values[upper - 1])

    def reset(self) -> None:
        """Draw new weights from the global random state, and forget the thresholds."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        self.thresholds.fill_(math.nan)

    @property
    def _values(self) -> tuple[float, ...]:
        # Reading a tensor takes longer than the layers of a small gate; it is read if it changed.
        buffer = self.thresholds
        version = -1 if buffer.is_inference() else buffer._version
        seen = self._seen
        if seen is None or seen[0] is not buffer or seen[1] != version or version < 0:
            seen = self._seen = (buffer, version, tuple(buffer.tolist()))
        return seen[2]


def vision_mean(hidden: Tensor, vision: Tensor) -> Tensor:
    """Return the mean state of the image tokens of each row, float32 [b, d]; zeros without any.

    Args:
        hidden: states, [b, s, d].
        vision: True at image tokens, bool [b, s].
    """
    mask = vision.to(hidden.device)
    if len(hidden) == 1:
        index = mask[0].nonzero()[:, 0]
        chosen = hidden[0].index_select(0, index).float()
        return chosen.mean(0, keepdim=True) if len(index) else chosen.new_zeros(1, hidden.shape[-1])
    # Left out, not multiplied by zero: a state that is not a number may stand at padding.
    kept = torch.where(mask[..., None], hidden.float(), 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
