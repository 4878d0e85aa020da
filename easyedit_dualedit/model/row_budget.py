"""How many rows share a forward: as many as a budget of tokens allows, fewer where memory ends."""

import logging
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import input_device
from easyedit_dualedit.model.row_bytes import bytes_of_token, trained_bytes_of_token
from easyedit_dualedit.model.row_memory import (
    allowed_bytes,
    free_bytes,
    give_back,
    is_out_of_memory,
)

Item = TypeVar("Item")
Work = Callable[[list[Item]], Any]
"""Done with some items, such as the places of rows; all of it or, if it fails, nothing."""

logger = logging.getLogger(__name__)

_WIDTH = 2
"""Times its shortest row that a batch may be wide: shorter rows would be mostly padding."""

_SHARE = 0.6
"""Of what is free that rows may take: generation copies caches when they grow, a training keeps
some, adapters have gradients and moments."""

_MOST = 32_768
"""Tokens that share a forward at most: more of them are no faster."""

_ON_CPU = 8192


class RowBudget:
    """How many tokens, padding included, may share a forward. It shrinks where memory runs out."""

    def __init__(self, tokens: int, device: torch.device | None = None, *, widest: float = _WIDTH):
        """Allow so many tokens on a device; a row that is longer stands alone.

        Args:
            tokens: that may share a forward.
            device: that the rows are on; None is the CPU.
            widest: times its shortest row that a batch may be wide.
        """
        self.tokens = tokens
        self._device = torch.device("cpu") if device is None else device
        self._widest = widest

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """Return what a model's memory has room for, where its rows are read and answered.

        That is what `allowed_memory` leaves beside the weights, or else what the device has free;
        of a CPU without it most is left to others.

        Args:
            backbone: parts of the model, which lies where it will run.

        Raises:
            BackboneError: if less is allowed than the weights take.
        """
        device, room = input_device(backbone.model), _room(backbone)
        most = _ON_CPU if device.type == "cpu" else _MOST
        tokens = most if room is None else min(most, room // bytes_of_token(backbone))
        return cls(max(1, tokens), device)

    @classmethod
    def for_training(cls, backbone: Backbone, layer: int, *, recomputes: bool) -> Self:
        """Return what a model's memory has room for in a training step.

        Tokens are those of records: their queries' rows, whatever the padding.

        Args:
            backbone: as for `of`.
            layer: above which gradients flow.
            recomputes: whether layers run again for their gradient.

        Raises:
            BackboneError: if less is allowed than the weights take.
        """
        room = _room(backbone)
        each = trained_bytes_of_token(backbone, layer, recomputes=recomputes)
        tokens = sys.maxsize if room is None else max(1, room // each)
        return cls(tokens, input_device(backbone.model), widest=math.inf)

    def parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Return the rows of each forward: of like length, within the budget, in order.

        Args:
            lengths: tokens of each row.
        """
        order = sorted(range(len(lengths)), key=lambda row: lengths[row])
        parts: list[list[int]] = []
        for row in order:
            part = parts[-1] if parts else []
            fits = (len(part) + 1) * lengths[row] <= self.tokens
            if part and fits and lengths[row] <= self._widest * lengths[part[0]]:
                part.append(row)
            else:
                parts.append([row])
        return [sorted(part) for part in parts]

    def run(self, rows: Sequence[int], lengths: Sequence[int], work: Work[int]) -> None:
        """Do some work on rows, and on halves of them where the memory is not enough.

        Args:
            rows: some of all rows.
            lengths: tokens of each of all rows.
            work: is given rows; what it has done of some before it failed is done again.

        Raises:
            torch.OutOfMemoryError: if there is no room for a single row.
        """
        waiting = list(rows)
        while waiting:
            part = [waiting[place] for place in self.parts([lengths[row] for row in waiting])[0]]
            if self._done(part, work):
                waiting = [row for row in waiting if row not in part]
                continue
            self._halve(len(part), len(part) * max(lengths[row] for row in part))

    def run_together(self, items: Sequence[Item], work: Work[Item]) -> None:
        """Do some work on items that share a forward, and on halves of them where memory ends.

        Args:
            items: within the budget, in an order that halves keep.
            work: is given items.

        Raises:
            torch.OutOfMemoryError: if there is no room for a single one.
        """
        waiting = [list(items)]
        while waiting:
            part = waiting.pop(0)
            if not self._done(part, work):
                self._halve(len(part), self.tokens)
                middle = len(part) // 2
                waiting[:0] = [part[:middle], part[middle:]]

    def _halve(self, count: int, tokens: int) -> None:
        # Outside of the handler, which holds the frames of what failed and so its tensors.
        give_back(self._device)
        self.tokens = max(1, min(self.tokens, tokens // 2))
        logger.warning(
            "memory ends at %d at once; from now on %d tokens share a forward at most",
            count,
            self.tokens,
        )

    def _done(self, part: list[Item], work: Work[Item]) -> bool:
        try:
            work(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            return False
        return True


def _room(backbone: Backbone) -> int | None:
    """Return the bytes that rows may take; None where nobody tells.

    Raises:
        BackboneError: if less is allowed than the weights take.
    """
    allowed = allowed_bytes()
    if allowed is None:
        free = free_bytes(input_device(backbone.model))
        return None if free is None else int(free * _SHARE)
    weights = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
    if allowed <= weights:
        raise BackboneError(
            f"the weights alone take {weights / 2**30:.1f} GiB of the {allowed / 2**30:.1f}"
            " GiB allowed; allow more, or load the model quantized"
        )
    return int((allowed - weights) * _SHARE)
