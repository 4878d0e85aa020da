"""Rows of a training step that share a forward, and the edits that its requests make."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.method.adapter import ProjectedEdit, packed
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.editor import DualEditor
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


def projected_requests(
    editor: DualEditor, groups: Sequence[RowGroup]
) -> dict[Modality, ProjectedEdit]:
    """Return the edits of the requests of some records, projected, in the records' order."""
    adapters = editor.adapters
    layers = {adapters.layer_of[name] for name in adapters.modalities}
    records: list[Tensor] = []
    signals: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    words: list[Tensor] = []
    with torch.no_grad():
        for group in groups:
            chosen = group.rows(["reliability"])
            if not chosen:
                continue
            upper = group.frozen.take(chosen)
            batch = group.frozen.batch.select(upper.rows)
            # An end-of-turn token is asked for, but carries no edit.
            ended = (batch.labels != IGNORED) & ~batch.target
            layout = replace(batch.layout, real=batch.layout.real & ~ended)
            batch = replace(batch, layout=layout)
            carrying = editor.carrying(batch)
            records.append(group.record[upper.rows])
            words.append(packed(editor.words(batch)[..., None], carrying)[0])
            for layer, signal in signals.items():
                signal.append(packed(upper.states_at(layer, carrying), carrying))
    order = torch.cat(records).argsort()
    projected = {}
    width = max(each.shape[1] for each in words)
    ids = torch.cat([_widened(each, width) for each in words])[order]
    vectors = adapters.word_vectors(ids[..., 0])
    for name in adapters.modalities:
        signal = signals[adapters.layer_of[name]]
        states = torch.cat([_widened(each, width) for each, _ in signal])[order]
        masks = [_widened(each[..., None], width)[..., 0] for _, each in signal]
        mask = torch.cat(masks)[order]
        projected[name] = adapters[name].project(states, mask, vectors)
    return projected


def _widened(values: Tensor, width: int) -> Tensor:
    """Return values [b, e, d] with zeros, or False, up to a width, [b, width, d]."""
    return functional.pad(values, (0, 0, 0, width - values.shape[1]))
