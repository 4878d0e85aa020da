"""Which of many edits a query may be similar enough to, found with keys of eight bits.

A product with eight-bit keys reads a quarter of the bytes, and its error has a bound. An edit whose
product falls short of the threshold by more than that cannot apply; the others are compared again
in full precision. So the shortlist is quicker, and its outcome is that of the whole product.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_LARGEST = 127
"""Of a signed byte, the same on both sides of zero."""

_BLOCK = 128
"""Edits whose products are looked at together."""

FEWEST = 2048
"""Edits from which a shortlist is quicker than the whole product."""

_LONGEST = 16
"""Blocks at most; with more, the whole product is quicker."""

_ROUNDING = 1e-4
"""Room for the rounding of the products in single precision, as a share of both lengths."""


@dataclass(frozen=True)
class Shortlist:
    """Keys of eight bits. Shapes: n edits, k width, m edits in whole blocks."""

    columns: Tensor
    """Bytes of the keys as columns, [k, m]; zeros after the last edit."""
    scale: float
    """What bytes are multiplied with."""
    error: float
    """Length of the largest difference between a key and its bytes."""
    reach: float
    """Length of the longest key in bytes."""
    count: int
    """n."""

    @classmethod
    def of(cls, keys: Tensor) -> Self | None:
        """Return the shortlist of keys, float32 [n, k]; None where it would not be quicker.

        Keys that are not numbers are on no shortlist: they concern no query.
        """
        if keys.device.type != "cpu" or keys.dtype != torch.float32 or len(keys) < FEWEST:
            return None
        sound = torch.where(keys.isfinite().all(1, keepdim=True), keys, 0.0)
        scale = float(sound.abs().amax()) / _LARGEST
        if not scale > torch.finfo(torch.float32).tiny:
            return None
        levels = (sound / scale).round()
        rows = -(-len(keys) // _BLOCK) * _BLOCK
        padded = torch.zeros(rows, keys.shape[1], dtype=torch.int8)
        padded[: len(keys)] = levels.to(torch.int8)
        if not _multiplies_exactly(padded):
            return None
        error = float((sound - levels * scale).norm(dim=1).amax())
        reach = float((levels * scale).norm(dim=1).amax())
        return cls(padded.T, scale, error, reach, len(keys))

    def blocks(self, query: Tensor, length: float, least: float) -> list[slice] | None:
        """Return where the edits lie whose product with a query may reach `least`.

        Args:
            query: float32 [k], finite.
            length: of the query.
            least: a product, in the units of keys and query.

        Returns:
            Slices of the edits, in order; None if there are too many for it to be of use.
        """
        largest = torch.linalg.vector_norm(query, math.inf).item()
        if not largest > 0:
            return None
        step = largest / _LARGEST
        # Cut off, not rounded, which is quicker: each number is off by less than a step.
        missing = math.sqrt(len(query)) * step
        room = self.error * length + self.reach * (missing + _ROUNDING * length)
        limit = (least - room) / (self.scale * step)
        if not limit > 0:
            return None
        products = torch._int_mm((query * (1 / step)).char().view(1, -1), self.columns)
        if products.amax().item() < limit:
            return []
        best = products.view(-1, _BLOCK).amax(1).tolist()
        chosen = [place for place, value in enumerate(best) if value >= limit]
        if len(chosen) > _LONGEST:
            return None
        return [slice(p * _BLOCK, min((p + 1) * _BLOCK, self.count)) for p in chosen]


def _multiplies_exactly(levels: Tensor) -> bool:
    """Return whether this processor's product of bytes is exact; older ones saturate sums."""
    probe = torch.where(levels[:1] < 0, -_LARGEST, _LARGEST).to(torch.int8)
    try:
        found = torch._int_mm(probe, levels.T)
    except (AttributeError, RuntimeError):  # not in this build of torch
        return False
    return torch.equal(found.long(), probe.long() @ levels.long().T)
