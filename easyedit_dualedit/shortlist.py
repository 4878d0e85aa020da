"""Which of many edits a query may be similar enough to, found with few numbers of eight bits.

A key is kept as what it is along the directions in which keys differ most, and the length of the
rest. The product of two such vectors is never less than that of the keys (Cauchy and Schwarz), and
the error of eight bits has a bound. An edit whose product still falls short of the threshold cannot
apply; the others are compared in full. So the shortlist reads an eighth of the bytes, and its
outcome is that of the whole product.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_LARGEST = 127
"""Of a signed byte, the same on both sides of zero."""

WIDTH = 64
"""Numbers that are kept of a key, at most."""

FEWEST = 1024
"""Edits from which a shortlist is quicker than the whole product."""

_LONGEST = 512
"""Edits at most; with more, the whole product is quicker."""

_SHARES = 4
"""Numbers that the length of the rest is spread over: eight bits suit numbers of like size."""

_SQUARED = 1e-6
"""Room for the rounding of a difference of squares, as a share of the squares."""

_ROUNDING = 1e-4
"""Room for the rounding of the products in single precision, as a share of both lengths."""

_SAMPLE = 512
"""Keys at most that the directions are chosen by: wide ones take long."""

_NOBODY = np.empty(0, np.intp)


@dataclass(frozen=True)
class Shortlist:
    """Keys of eight bits. Shapes: n edits, k width, w numbers that are kept."""

    keys: NDArray[np.float32]
    """The keys themselves, [n, k]."""
    directions: NDArray[np.float32]
    """Unit vectors and, in the last places, zeros, [w, k]."""
    columns: Tensor
    """Bytes of the keys as columns, [w, n]."""
    unit: float
    """A product of bytes that stands for one."""
    room: float
    """How far at most the product of a key and a query of length one is above that of bytes."""

    @classmethod
    def of(cls, keys: Tensor) -> Self | None:
        """Return the shortlist of keys, float32 [n, k]; None where it would not be quicker.

        Keys that are not numbers are on no shortlist: they concern no query.
        """
        if keys.device.type != "cpu" or keys.dtype != torch.float32 or len(keys) < FEWEST:
            return None
        sound = torch.where(keys.isfinite().all(1, keepdim=True), keys, 0.0)
        directions = _main_directions(sound, WIDTH - _SHARES)
        along = sound @ directions.T
        rest = (sound - along @ directions).norm(dim=1, keepdim=True)
        kept = torch.cat([along, rest.expand(-1, _SHARES) / math.sqrt(_SHARES)], 1)
        scale = float(kept.abs().amax()) / _LARGEST
        if not scale > torch.finfo(torch.float32).tiny:
            return None
        levels = (kept / scale).round()
        rows = levels.to(torch.int8)
        if not _multiplies_exactly(rows):
            return None
        error = float((kept - levels * scale).norm(dim=1).amax())
        reach = float((levels * scale).norm(dim=1).amax())
        half_steps = math.sqrt(kept.shape[1]) / (2 * _LARGEST)  # a query's bytes are off by as much
        return cls(
            keys.detach().numpy(),
            nn.functional.pad(directions, (0, 0, 0, _SHARES)).numpy(),
            rows.T,
            _LARGEST / scale,
            error + reach * (half_steps + _ROUNDING),
        )

    def candidates(
        self, query: NDArray[np.float32], length: float, least: float, tie: float
    ) -> NDArray[np.intp] | None:
        """Return the edits among which that of the largest product with a query is.

        Args:
            query: [k], finite.
            length: of the query.
            least: a product below which an edit does not matter.
            tie: how much less than the largest a product may be and matter as well.

        Returns:
            Indices of edits, in order, [m]; none if no product reaches `least`; None if there are
            too many for them to be of use.
        """
        kept = self.directions.dot(query)
        square = length * length
        # Rounded up: of a query that lies along the directions, what is left is all rounding.
        rest = max(0.0, square - float(kept.dot(kept))) + _SQUARED * square
        kept[-_SHARES:] = math.sqrt(rest / _SHARES)
        limit = self._limit(least / length)
        if not limit > 0:
            return None
        levels = np.rint(kept * (_LARGEST / length)).astype(np.int8)
        products = torch._int_mm(torch.from_numpy(levels).view(1, -1), self.columns).numpy()[0]
        best = products.argmax()
        value = products[best]
        if value < limit:
            return _NOBODY
        # To see that the second is too far below the first is quicker than to look for all.
        least = max(least, float(self.keys[best].dot(query)) - tie)
        limit = self._limit(least / length)
        products[best] = 0
        if products[products.argmax()] < limit:
            return np.array([best])
        products[best] = value
        found: NDArray[np.intp] = (products >= np.int32(math.ceil(limit))).nonzero()[0]
        return None if len(found) > _LONGEST else found

    def _limit(self, cosine: float) -> float:
        return (cosine - self.room) * self.unit


def _main_directions(keys: Tensor, count: int) -> Tensor:
    """Return unit vectors along which keys [n, k] are long, at right angles, [count, k]."""
    some = keys[:: -(-len(keys) // _SAMPLE)]  # any directions are right, these are good
    directions: Tensor = torch.linalg.svd(some, full_matrices=False).Vh[:count]
    return directions


def _multiplies_exactly(levels: Tensor) -> bool:
    """Return whether this processor's product of bytes is exact; older ones saturate sums."""
    probe = torch.where(levels[:1] < 0, -_LARGEST, _LARGEST).to(torch.int8)
    try:
        found = torch._int_mm(probe, levels.T)
    except (AttributeError, RuntimeError):  # not in this build of torch
        return False
    return torch.equal(found.long(), probe.long() @ levels.long().T)
