"""The states of a picture's patches in the vision tower."""

from typing import Any

from torch import Tensor
from torch.nn import functional


def patch_states(
    tower: Any, pixels: Tensor, keep: Tensor | None = None, *, below_last: bool = False
) -> Tensor:
    """Return the states [n, p, width] that the projector reads.

    Args:
        tower: the vision tower.
        pixels: pictures [n, 3, 96, 96] in -1..1.
        keep: numbers of the patches that are looked at [n, p]; all with None.
        below_last: return the states that the last layer reads instead.
    """
    inner = getattr(tower, "vision_model", tower)
    states = inner.embeddings(pixels)
    if keep is not None:
        states = states.gather(1, keep[..., None].expand(-1, -1, states.shape[-1]))
    layers = list(inner.encoder.layers)
    for layer in layers[:-1] if below_last else layers:
        found = layer(states, attention_mask=None)
        states = found[0] if isinstance(found, tuple) else found
    return states  # type: ignore[no-any-return]


def unit_states(states: Tensor) -> Tensor:
    """Return states [..., width] with mean 0 and deviation 1 each, as a layer's norm gives them."""
    return functional.layer_norm(states.float(), states.shape[-1:])
