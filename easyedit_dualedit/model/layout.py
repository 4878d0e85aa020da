"""Which position of a batch's rows is what, and the batch itself."""

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that carries no loss, as in transformers."""


@dataclass(frozen=True)
class TokenLayout:
    """Which position of each row is what. Masks are True where the name applies."""

    vision: Tensor
    """Image tokens, bool [b, s]."""
    text: Tensor
    """Prompt text that the text adapter may change, bool [b, s]: never target or padding."""
    gate: Tensor
    """Index of the last prompt token, long [b]."""
    last: Tensor
    """Index of the last real token, target included, long [b]."""
    real: Tensor
    """Everything but padding, bool [b, s]."""

    def to(self, device: torch.device) -> "TokenLayout":
        """Return the layout on a device."""
        moved = (getattr(self, field.name).to(device) for field in dataclasses.fields(self))
        return TokenLayout(*moved)

    def without_prompt_end(self) -> "TokenLayout":
        """Return the layout with the last prompt token no longer counted as prompt text."""
        positions = torch.arange(self.text.shape[1], device=self.text.device)
        return dataclasses.replace(self, text=self.text & (positions != self.gate[:, None]))

    def select(self, rows: Tensor) -> "TokenLayout":
        """Return the layout of some rows, long [r]."""
        return TokenLayout(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def repeated(self, times: int) -> "TokenLayout":
        """Return the layout of rows that are repeated in place, as beam search does."""
        fields = dataclasses.fields(self)
        return TokenLayout(*(getattr(self, f.name).repeat_interleave(times, 0) for f in fields))


@dataclass(frozen=True)
class Batch:
    """Model inputs with their layout and, where there are targets, labels."""

    inputs: dict[str, Tensor]
    layout: TokenLayout
    target: Tensor
    """Positions of target tokens, bool [b, s]; the end-of-turn token is none of them."""
    labels: Tensor
    """Token ids to predict, aligned with `input_ids`, IGNORED elsewhere; long [b, s]."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.inputs["input_ids"].shape[0])


def last_real_index(attention_mask: Tensor) -> Tensor:
    """Return the index of the last real token of each row, long [b]."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.where(attention_mask.bool(), positions, -1).amax(1)
