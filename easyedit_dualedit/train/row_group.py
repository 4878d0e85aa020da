"""Rows of a training step that share a forward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.model.inputs import IGNORED, Query
from easyedit_dualedit.train.upper_layers import FrozenOutput


@dataclass(frozen=True)
class RowGroup:
    """Rows of one forward: those with pictures, or those without."""

    frozen: FrozenOutput
    metric: Tensor
    """Index in METRICS of each row, long [b]."""
    record: Tensor
    """Index of the record of each row, long [b]."""
    queries: Sequence[Query]
    ends: Sequence[bool]
    metrics: Sequence[str]
    """Metric of each row."""

    def rows(self, metrics: Sequence[str]) -> list[int]:
        """Return the rows of some metrics."""
        return [row for row, metric in enumerate(self.metrics) if metric in metrics]


class Row(NamedTuple):
    """One query of a record."""

    metric: str
    record: int
    query: Query


def answers(group: RowGroup, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where rows predict answer tokens, [r, s], and of each such place token and metric."""
    following = group.frozen.batch.labels[rows, 1:]
    answer = following != IGNORED
    metric = group.metric[rows, None].expand_as(answer)[answer]
    return functional.pad(answer, (0, 1)), following[answer], metric
