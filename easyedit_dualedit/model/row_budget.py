"""How many rows share a forward: as many as a budget of tokens allows, fewer where memory ends."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.row_memory import free_bytes, give_back, is_out_of_memory

Work = Callable[[list[int]], Any]
"""Done with the places of some rows."""

logger = logging.getLogger(__name__)

_WIDTH = 2
"""Times its shortest row that a batch may be wide: shorter rows would be mostly padding."""

_SHARE = 0.6
"""Of what is free that rows may take: generation copies caches when they grow."""

_MOST = 32_768
"""Tokens that share a forward at most: more of them are no faster."""

_ON_CPU = 8192


class RowBudget:
    """How many tokens, padding included, may share a forward. It shrinks where memory runs out."""

    def __init__(self, tokens: int, device: torch.device | None = None):
        """Allow so many tokens on a device; a row that is longer stands alone."""
        self.tokens = tokens
        self._device = torch.device("cpu") if device is None else device

    @classmethod
    def of(cls, backbone: Backbone, memory: int | None = None) -> Self:
        """Return what a model's memory has room for, where its rows are read and answered.

        Args:
            backbone: parts of the model, which lies where it will run.
            memory: bytes that the process may take there, the model's weights included; None is
                what the device has. A CPU without it is left most of its memory.
        """
        device = backbone.device
        if memory is not None:
            weights = sum(p.numel() * p.element_size() for p in backbone.model.parameters())
            room: int | None = memory - weights
            if memory <= weights:
                raise BackboneError(
                    f"the weights alone take {weights / 2**30:.1f} GiB of the {memory / 2**30:.1f}"
                    " GiB allowed; allow more, or load the model quantized"
                )
        else:
            room = free_bytes(device)
        most = _ON_CPU if device.type == "cpu" else _MOST
        if room is None:
            return cls(most, device)
        tokens = int(room * _SHARE) // bytes_of_token(backbone)
        return cls(max(1, min(most, tokens)), device)

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
            if part and fits and lengths[row] <= _WIDTH * lengths[part[0]]:
                part.append(row)
            else:
                parts.append([row])
        return [sorted(part) for part in parts]

    def run(self, rows: Sequence[int], lengths: Sequence[int], work: Work) -> None:
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
            # Outside of the handler, which holds the frames of what failed and so its tensors.
            give_back(self._device)
            padded = len(part) * max(lengths[row] for row in part)
            self.tokens = max(1, min(self.tokens, padded // 2))
            logger.warning(
                "memory ends at %d rows; from now on %d tokens share a forward at most",
                len(part),
                self.tokens,
            )

    def _done(self, part: list[int], work: Work) -> bool:
        try:
            work(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not is_out_of_memory(error):
                raise
            return False
        return True


def bytes_of_token(backbone: Backbone) -> int:
    """Return about how many bytes a token takes while its row is read and then answered.

    Its keys and values stay, in every layer; the states around a layer's widest part do not.
    """
    config: Any = backbone.model.config
    text = config.get_text_config()
    size = next(p for p in backbone.model.parameters() if p.is_floating_point()).element_size()
    hidden = backbone.hidden_size
    heads = getattr(text, "num_attention_heads", 1) or 1
    each = getattr(text, "head_dim", None) or hidden // heads
    kept = getattr(text, "num_key_value_heads", heads) or heads
    cached = 2 * len(backbone.layers) * kept * each
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    # Queries, keys, values and states of half a dozen steps; a norm computes in single precision.
    return int((cached + 3 * wide + 6 * hidden) * size + 2 * 4 * hidden)
