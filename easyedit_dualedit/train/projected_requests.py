"""The edits that the requests of a training step make, as its adapters take them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.method.adapter import ProjectedEdit, packed
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.train.row_group import RowGroup


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
