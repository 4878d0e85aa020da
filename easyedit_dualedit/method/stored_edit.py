"""An edit as it is kept: the adapters' keys and values of its target tokens, in few bytes.

At LLaVA-1.5-7B size a target of five tokens takes 22 kB as eight-bit numbers, 41 kB in half
precision, however large picture and prompt are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.method.adapter import ProjectedEdit
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.packing import Packed
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.pictures import content_digest

_KEPT_UNPACKED = 64


@dataclass(frozen=True)
class Provenance:
    """Where an edit comes from."""

    time: str
    """When it was made, in UTC, as ISO 8601 writes it."""
    prompt: str
    target: str
    pictures: tuple[str, ...]
    """A hash of what each picture shows."""

    @property
    def question(self) -> tuple[Any, ...]:
        """What two edits of one question have in common."""
        return (" ".join(self.prompt.split()), self.pictures)


@dataclass(frozen=True)
class PackedProjection:
    """Keys and values of one adapter for one edit.

    Shapes: h heads, e edit length, k width of a head.
    """

    keys: Packed
    """[h, e, k]."""
    values: Packed
    """[h, e, k]."""


@dataclass(frozen=True)
class StoredEdit:
    """One edit of a memory."""

    id: str
    provenance: Provenance
    key: Tensor
    """What the gate compares queries with, float32 [k]."""
    projected: Mapping[Modality, PackedProjection]

    @property
    def stored_bytes(self) -> int:
        """Bytes of its numbers."""
        parts = [part for one in self.projected.values() for part in (one.keys, one.values)]
        key = self.key.numel() * self.key.element_size()
        return key + sum(part.stored_bytes for part in parts)


class StoredProjections:
    """What one adapter needs of stored edits; only those in use are unpacked."""

    def __init__(self, edits: Sequence[PackedProjection], device: torch.device):
        """Keep the edits, oldest first, to be used on a device."""
        self._edits = tuple(edits)
        self._device = device
        self._unpacked: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        """Where the chosen edits will lie."""
        return self._device

    def select(self, rows: Tensor) -> ProjectedEdit:
        """Return the edits with the given indices, long [b]; shorter ones are padded."""
        chosen = [self._unpack(int(row)) for row in rows.tolist()]
        lengths = [keys.shape[1] for keys, _ in chosen]
        longest = max(lengths)
        is_full = min(lengths) == longest
        if is_full:
            keys = torch.stack([keys for keys, _ in chosen])
            values = torch.stack([values for _, values in chosen])
        else:
            keys = torch.stack([_padded(keys, longest) for keys, _ in chosen])
            values = torch.stack([_padded(values, longest) for _, values in chosen])
        ends = torch.tensor(lengths, device=self._device)
        mask = torch.arange(longest, device=self._device) < ends[:, None]
        return ProjectedEdit(keys, values, mask, is_full)

    def _unpack(self, row: int) -> tuple[Tensor, Tensor]:
        found = self._unpacked.get(row)
        if found is None:
            edit = self._edits[row]
            found = edit.keys.unpacked().to(self._device), edit.values.unpacked().to(self._device)
            while len(self._unpacked) >= _KEPT_UNPACKED:
                self._unpacked.pop(next(iter(self._unpacked)), None)
            self._unpacked[row] = found
        return found


def picture_hashes(request: Query) -> tuple[str, ...]:
    """Return a short hash of what each picture of a request shows.

    Raises:
        DataError: if a picture cannot be read.
    """
    return tuple(content_digest(picture)[:16] for picture in request.pictures)


def _padded(states: Tensor, length: int) -> Tensor:
    heads, own, width = states.shape
    return torch.cat([states, states.new_zeros(heads, length - own, width)], 1)
