"""Tensors from a file are what they should be: names, dtypes, shapes, and numbers that are numbers.

Every tensor that is loaded passes here before anything is made of it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Dtypes of weights, in whatever precision a model has them."""


@dataclass(frozen=True)
class Expected:
    """What a tensor has to be."""

    shape: Sequence[int | None]
    """None for any number."""
    dtypes: Sequence[torch.dtype] = FLOATING
    may_be_nan: bool = False
    """Whether NaN stands for a number that is not known yet; infinities are never allowed."""
    is_positive: bool = False
    """Whether all have to be above zero."""

    def problem(self, tensor: Tensor) -> str | None:
        """Return in a few words what is wrong with a tensor, or None if nothing is."""
        shape = tuple(tensor.shape)
        fits = len(shape) == len(self.shape) and all(
            wanted is None or wanted == size for wanted, size in zip(self.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in self.shape)
            return f"has shape {list(shape)}, not [{wanted}]"
        if tensor.dtype not in self.dtypes:
            allowed = ", ".join(_name(dtype) for dtype in self.dtypes)
            return f"holds {_name(tensor.dtype)}, not {allowed}"
        if not tensor.is_floating_point():
            return None
        wrong = tensor.isinf() if self.may_be_nan else ~tensor.isfinite()
        if bool(wrong.any()):
            return f"holds {int(wrong.sum())} values that are no numbers (NaN or infinite)"
        if self.is_positive and bool((tensor <= 0).any()):
            return "holds values that are not above zero"
        return None


def problems(tensors: Mapping[str, Tensor], expected: Mapping[str, Expected]) -> list[str]:
    """Return a line for each tensor that is missing, unexpected or not as it has to be."""
    lines = [f"{name} is missing" for name in expected if name not in tensors]
    lines += [f"{name} is not expected" for name in tensors if name not in expected]
    for name, wanted in expected.items():
        problem = wanted.problem(tensors[name]) if name in tensors else None
        if problem:
            lines.append(f"{name} {problem}")
    return lines


def told(lines: Sequence[str], most: int = 3) -> str:
    """Return the first few of several problems, and how many more there are."""
    more = f" and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def digest_of_tensors(tensors: Mapping[str, Tensor], *more: str) -> str:
    """Return a hash of tensors by name, of dtypes, shapes and bits; and of some texts."""
    digest = hashlib.blake2b(repr(more).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
