"""A gate whose weights are loaded or converted.

Its projection takes the form of those that are loaded, and thresholds stay as exact as they are.
"""

import logging
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


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


def prepare_projection(gate: Any, tensors: dict[str, Tensor], prefix: str, *_rest: object) -> None:
    """Give a `Gate` a projection of the form that is about to be loaded.

    A projection of version 0.1, which read no image tokens, is dropped: it cannot be used any more.
    """
    size, projection = len(gate.mean), type(gate.projection)
    names = [name for name in tensors if name.startswith(f"{prefix}projection.")]
    if f"{prefix}projection.threshold" in tensors:
        for name in names:
            del tensors[name]
        fresh = projection(size).state_dict()
        tensors.update({f"{prefix}projection.{name}": value for name, value in fresh.items()})
    elif names:
        start = f"{prefix}projection.layers."
        layers = {name.removeprefix(start): tensors[name] for name in names}
        form = projection.form_of(layers)
        if form != gate.projection.form:
            before = next(gate.projection.parameters())
            made = projection(size, form).to(before.device, before.dtype)
            gate.projection = made.requires_grad_(before.requires_grad)


def warn_of_fallback(gate: Any, _keys: object) -> None:
    """Say so where another kind decides in place of a `learned` gate that is not trained."""
    if gate.kind != gate.config.kind:
        logger.warning(
            "the weights hold no trained %s gate; the %s gate decides instead",
            gate.config.kind,
            gate.kind,
        )
