"""What an edit is once it has been read, and the edits that one edited model holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.adapter import DualAdapters, ProjectedEdit
from easyedit_dualedit.batch import Query
from easyedit_dualedit.config import Modality
from easyedit_dualedit.gate import Gate


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
    request: Query | None = None
    """What was asked for, where it is known."""


@dataclass(frozen=True)
class EditMemory:
    """Edits in the form in which a forward uses them; never changed, only replaced."""

    signals: tuple[EditSignal, ...]
    """Oldest first."""
    keys: Tensor
    """Gate keys, [n, d]."""
    projected: Mapping[Modality, ProjectedEdit]
    """Keys and values of each adapter in use; empty without edits."""

    @classmethod
    def of(cls, signals: Sequence[EditSignal], adapters: DualAdapters, gate: Gate) -> Self:
        """Return the memory that holds `signals`, oldest first."""
        if not signals:
            return cls((), gate.mean.new_empty(0, len(gate.mean)), {})
        reads_label = gate.config.reads_label
        keys = [signal.last_state if reads_label else signal.gate_state for signal in signals]
        projected = {}
        for modality in adapters.modalities:
            layer = adapters.layer_of[modality]
            states, mask = stacked([signal.states[layer] for signal in signals])
            projected[modality] = adapters[modality].project(states, mask)
        return cls(tuple(signals), gate.key(torch.stack(keys)), projected)

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self.signals)


def stacked(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return states of different lengths as one tensor [n, e, d] and its mask, bool [n, e].

    The mask is True at real positions.
    """
    lengths = torch.tensor([len(item) for item in states], device=states[0].device)
    padded = pad_sequence(list(states), batch_first=True)
    positions = torch.arange(padded.shape[1], device=padded.device)
    return padded, positions < lengths[:, None]
