"""How similar a query must be to the best of many edits: thresholds for each number of edits.

The edits that a threshold is chosen on stand for more. If a share c of them is as similar to a
query as the threshold, n edits of the same sort open for it with probability 1 - (1 - c)^n.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_dualedit.errors import CalibrationError

_LATTICE = 1001
_NEVER = -2.0  # below every cosine


@dataclass(frozen=True)
class ScopedSimilarities:
    """Similarities of one kind of query to edits.

    Shapes: n edits, each with a query of its own.
    """

    in_scope: bool
    """Whether a query's own edit should answer it; every other edit should leave it alone."""
    similarity: Tensor
    """Query by edit, [n, n]."""
    counts: Tensor
    """True where the query surely is in or out of scope, bool [n]."""
    unsure: Tensor | None = None
    """Another edit that may rightly answer the query, long [n], -1 for none: not counted."""

    @classmethod
    def of_nearest(cls, similarity: Tensor, answers: Tensor) -> "ScopedSimilarities":
        """Return those of each edit's request to the other edits, the most similar one as its own.

        It is the hardest query out of scope that there is: nobody has edited it, and an edit that
        is very like it is kept. Edits whose requests the unedited model begins to answer alike may
        be about the same, and are left out.

        Args:
            similarity: of requests to edits, [n, n].
            answers: first token of the unedited model's answer to each request, long [n].
        """
        others = similarity.masked_fill(answers[:, None] == answers, _NEVER)
        best, place = others.max(1)
        others.scatter_(1, place[:, None], _NEVER)
        others.diagonal().copy_(best)
        return cls(False, others, best > _NEVER)


@dataclass(frozen=True)
class CountCalibration:
    """A threshold for a number of edits, and how it does on the data that it was chosen on."""

    threshold: float
    """Cosine at or above which the best edit applies."""
    true_open_rate: float
    """Expected share of queries in scope that open it for their own edit, 0 to 1."""
    false_open_rate: float
    """Expected share of queries out of scope that open it for any edit, 0 to 1; the hardest are not
    counted."""
    right: float
    """Mean over the kinds of query, the hardest among them, of the share that is treated
    rightly, 0 to 1: what the threshold maximises."""


def thresholds_by_count(
    kinds: Sequence[ScopedSimilarities],
    counts: Sequence[int],
    *,
    false_open_rate: float,
    hardest: Sequence[ScopedSimilarities] = (),
) -> dict[int, CountCalibration]:
    """Return the best threshold for each number of edits, and what it lets through.

    It maximises the mean over the kinds of query of the share that is treated rightly; none is
    lower than one for fewer edits.

    Args:
        kinds: of queries, on edits that taught the gate nothing.
        counts: numbers of edits, ascending.
        false_open_rate: share of queries out of scope, over all kinds, that one edit alone may
            open for, 0 to 1: a lower bound of every threshold.
        hardest: more kinds of query out of scope, such as `ScopedSimilarities.of_nearest`, which
            have no part in `false_open_rate`.

    Raises:
        CalibrationError: if no query is in scope, or none out of it.
    """
    lattice = torch.linspace(0.0, 1.0, _LATTICE, device=kinds[0].similarity.device)
    openings = [_Opening.of(kind, lattice) for kind in kinds if bool(kind.counts.any())]
    if {each.in_scope for each in openings} != {True, False}:
        raise CalibrationError("thresholds need queries in scope and queries out of it")
    inside = torch.tensor([each.in_scope for each in openings], device=lattice.device)
    lowest = _strict(openings, lattice, false_open_rate)
    harder = [_Opening.of(kind, lattice) for kind in hardest if bool(kind.counts.any())]
    chosen = {}
    for count in counts:
        rates = torch.stack([each.rates(count) for each in openings])  # [kinds, t]
        treated = [*torch.where(inside[:, None], rates, 1 - rates)]
        right = torch.stack(treated + [1 - each.rates(count) for each in harder]).mean(0)
        lowest = max(lowest, _middle_of_best(right))
        chosen[count] = CountCalibration(
            float(lattice[lowest]),
            float(rates[inside, lowest].mean()),
            float(rates[~inside, lowest].mean()),
            float(right[lowest]),
        )
    return chosen


@dataclass(frozen=True)
class _Opening:
    """What decides about one kind of query. Shapes: m queries that count, t thresholds."""

    in_scope: bool
    own: Tensor
    """Similarity to the query's own edit, [m]."""
    is_open: Tensor
    """Whether the own edit opens at each threshold, bool [m, t]."""
    share: Tensor
    """Share of the other edits at or above each threshold, [m, t]."""
    above: Tensor
    """Share of the other edits that are more similar than the own one, [m]."""

    @classmethod
    def of(cls, kind: ScopedSimilarities, lattice: Tensor) -> "_Opening":
        own = kind.similarity.diagonal()
        others = kind.similarity.clone()
        others.fill_diagonal_(_NEVER)
        if kind.unsure is not None:
            rows = (kind.unsure >= 0).nonzero()[:, 0]
            others[rows, kind.unsure[rows]] = _NEVER
        own, others = own[kind.counts], others[kind.counts]
        ordered = others.sort(dim=1).values
        below = torch.searchsorted(ordered, lattice.expand(len(others), -1).contiguous())
        total = max(1, others.shape[1] - 1)
        share = (others.shape[1] - below) / total
        above = (others > own[:, None]).sum(1) / total
        return cls(kind.in_scope, own, own[:, None] >= lattice, share, above)

    def rates(self, count: int) -> Tensor:
        """Return the share that opens at each threshold, [t]: for the own edit if in scope."""
        if self.in_scope:
            is_best = (1 - self.above) ** (count - 1)
            return (self.is_open * is_best[:, None]).mean(0)
        any_other = 1 - (1 - self.share) ** (count - 1)
        return torch.where(self.is_open, 1.0, any_other).mean(0)


def _middle_of_best(right: Tensor) -> int:
    places = (right >= right.amax() - 1e-6).nonzero()[:, 0]
    return int(places[len(places) // 2])  # a little room on either side


def _strict(openings: Sequence[_Opening], lattice: Tensor, rate: float) -> int:
    outside = torch.cat([each.is_open for each in openings if not each.in_scope])
    allowed = (outside.float().mean(0) <= rate).nonzero()[:, 0]
    return int(allowed[0]) if len(allowed) else len(lattice) - 1
