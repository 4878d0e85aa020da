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

    def best(
        self, query: NDArray[np.float32], length: float, least: float, tie: float
    ) -> int | None:
        """Return the edit of the largest product with a query, as `newest_of_best` does.

        Args:
            query: [k], finite.
            length: of the query.
            least: a product below which no edit applies.
            tie: products that differ by less are equal.

        Returns:
            Its index; -1 if no product reaches `least`; None if too many may be the largest.
        """
        kept = self.directions.dot(query)
        square = length * length
        # Rounded up: of a query that lies along the directions, what is left is all rounding.
        rest = max(0.0, square - float(kept.dot(kept))) + _SQUARED * square
        kept[-_SHARES:] = math.sqrt(rest / _SHARES)
        limit = self._limit(least / length)
        if not limit > 0:
            return None
        levels = torch.from_numpy(np.rint(kept * (_LARGEST / length)).astype(np.int8))
        bounds = torch._int_mm(levels.view(1, -1), self.columns).numpy()[0]
        first = int(bounds.argmax())
        bound = bounds[first]
        if bound < limit:
            return -1
        product = float(self.keys[first].dot(query))
        if product - tie > least:  # others have to come near this one
            limit = self._limit((product - tie) / length)
        # Few are near two edits, and to look at the second is quicker than to look for all.
        bounds[first] = 0
        if bounds[bounds.argmax()] < limit:
            return first if product >= least else -1
        bounds[first] = bound
        found = (bounds >= np.int32(math.ceil(limit))).nonzero()[0]
        if len(found) > _LONGEST:
            return None
        place = newest_of_best(self.keys[found].dot(query), least, tie)
        return -1 if place < 0 else int(found[place])

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


def newest_of_best(products: NDArray[np.float32], least: float, tie: float) -> int:
    """Return the place of the largest product, -1 if it is less than `least`.

    Of those that differ by less than `tie`, the last is returned.
    """
    best = float(products[products.argmax()])
    if best < least:
        return -1
    if not math.isfinite(best):  # the state of an edit is not a number: it concerns no query
        products = np.where(np.isfinite(products), products, np.float32(-math.inf))
        best = float(products[products.argmax()])
        if best < least or best == -math.inf:
            return -1
    return int((products >= best - tie).nonzero()[0][-1])
