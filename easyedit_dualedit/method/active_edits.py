"""What an edit is once it has been read, and the edits that one edited model applies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.adapter import DualAdapters, ProjectedEdit
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.stored_edit import StoredEdit, StoredProjections
from easyedit_dualedit.model.inputs import Query


@dataclass(frozen=True)
class EditSignal:
    """States of one edit request in the unedited model (paper section 4).

    Shapes: e positions that carry the edit, d hidden size.
    """

    states: Mapping[int, Tensor]
    """Layer -> states at the positions that carry the edit, [e, d]."""
    gate_state: Tensor
    """State of the last prompt token at the text layer, [d]."""
    last_state: Tensor
    """State of the last target token at the text layer, [d]; only `last-token` gates read it."""
    vision_state: Tensor
    """Mean state of the image tokens at the text layer, [d]; zeros without a picture."""
    request: Query | None = None
    """What was asked for, where it is known."""


class Projections(Protocol):
    """What one adapter needs of several edits."""

    @property
    def device(self) -> torch.device:
        """Where the chosen edits will lie."""

    def select(self, rows: Tensor) -> ProjectedEdit:
        """Return the edits with the given indices, long [b]."""


@dataclass(frozen=True)
class ActiveEdits:
    """Edits in the form in which a forward uses them; never changed, only replaced."""

    edits: tuple[EditSignal | StoredEdit, ...]
    """Oldest first."""
    keys: Tensor
    """Gate keys, [n, k]."""
    projected: Mapping[Modality, Projections]
    """Keys and values of each adapter in use; empty without edits."""

    @classmethod
    def of(cls, signals: Sequence[EditSignal], adapters: DualAdapters, gate: Gate) -> Self:
        """Return `signals`, oldest first, as adapters and gate see them; gradients pass."""
        if not signals:
            return cls((), gate.mean.new_empty(0, len(gate.mean)), {})
        projected: dict[Modality, Projections] = {}
        for modality in adapters.modalities:
            layer = adapters.layer_of[modality]
            parts = [signal.states[layer] for signal in signals]
            made = adapters[modality].project(*stacked(parts))
            projected[modality] = replace(made, is_full=len({len(part) for part in parts}) == 1)
        return cls(tuple(signals), keys_of(signals, gate), projected)

    @classmethod
    def of_stored(cls, stored: Sequence[StoredEdit], device: torch.device) -> Self:
        """Return stored edits, oldest first, ready for a forward on a device."""
        if not stored:
            return cls((), torch.empty(0, 0, device=device), {})
        keys = torch.stack([edit.key for edit in stored]).to(device)
        projected: dict[Modality, Projections] = {
            modality: StoredProjections([edit.projected[modality] for edit in stored], device)
            for modality in stored[0].projected
        }
        return cls(tuple(stored), keys, projected)

    @classmethod
    def together(cls, parts: Sequence["ActiveEdits"], adapters: DualAdapters, gate: Gate) -> Self:
        """Return the edits of several, in their order.

        Raises:
            DataError: if some are stored and some are not.
        """
        edits = [edit for part in parts for edit in part.edits]
        signals = [edit for edit in edits if isinstance(edit, EditSignal)]
        stored = [edit for edit in edits if isinstance(edit, StoredEdit)]
        if signals and stored:
            raise DataError("edits that were stored and edits that were only read do not mix")
        if stored:
            return cls.of_stored(stored, gate.mean.device)
        return cls.of(signals, adapters, gate)

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self.edits)


def keys_of(signals: Sequence[EditSignal], gate: Gate) -> Tensor:
    """Return what a gate compares queries with, [n, k]."""
    reads_label = gate.config.reads_label
    states = [signal.last_state if reads_label else signal.gate_state for signal in signals]
    pictures = torch.stack([signal.vision_state for signal in signals])
    return gate.key(torch.stack(states), pictures)


def packed(states: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states at some positions of each row, [b, e, d], and their mask, bool [b, e].

    The mask is True at real positions; the others, at the end of rows with fewer, are zeros.

    Args:
        states: [b, s, d].
        at: True at the positions, bool [b, s].
    """
    at = at.to(states.device)
    count = at.sum(1, keepdim=True)
    order = at.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, : int(count.max())]
    mask = torch.arange(order.shape[1], device=at.device) < count
    chosen = states.gather(1, order[..., None].expand(*order.shape, states.shape[-1]))
    return chosen.masked_fill(~mask[..., None], 0.0), mask


def stacked(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return states of different lengths as one tensor [n, e, d] and its mask, bool [n, e].

    The mask is True at real positions.
    """
    lengths = torch.tensor([len(item) for item in states], device=states[0].device)
    padded = pad_sequence(list(states), batch_first=True)
    positions = torch.arange(padded.shape[1], device=padded.device)
    return padded, positions < lengths[:, None]
