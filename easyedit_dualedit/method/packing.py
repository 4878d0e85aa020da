"""Numbers of an edit in fewer bytes: single or half precision, or eight bits and a scale."""

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from easyedit_dualedit.errors import ConfigError

Precision = Literal["float32", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""From the largest to the smallest."""

_LARGEST = 127
"""Of a signed byte, the same on both sides of zero."""


@dataclass(frozen=True)
class Packed:
    """A tensor as it is stored."""

    values: Tensor
    """In the stored precision, of the tensor's shape."""
    scale: Tensor | None = None
    """What int8 values are multiplied with, float32, one for each vector of the last dimension."""

    @classmethod
    def of(cls, tensor: Tensor, precision: Precision) -> Self:
        """Return a tensor in a precision.

        Args:
            tensor: [..., k], floating.
            precision: of `PRECISIONS`.

        Raises:
            ConfigError: if there is no such precision.
        """
        exact = tensor.detach().float()
        if precision == "float32":
            return cls(exact)
        if precision == "float16":
            largest = torch.finfo(torch.float16).max
            return cls(exact.clamp(-largest, largest).half())
        if precision == "int8":
            scale = exact.abs().amax(-1, keepdim=True) / _LARGEST
            scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
            values = (exact / scale).round().clamp(-_LARGEST, _LARGEST)
            return cls(values.to(torch.int8), scale)
        raise ConfigError(f"precision = {precision!r}: one of {', '.join(PRECISIONS)}")

    def unpacked(self) -> Tensor:
        """Return the tensor in single precision."""
        exact = self.values.float()
        return exact if self.scale is None else exact * self.scale

    def to(self, device: torch.device) -> "Packed":
        """Return it on a device."""
        scale = None if self.scale is None else self.scale.to(device)
        return Packed(self.values.to(device), scale)

    @property
    def stored_bytes(self) -> int:
        """Bytes that it takes."""
        tensors = [self.values] if self.scale is None else [self.values, self.scale]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
