"""What the arguments of a model's call are named, and its rows made as wide as others."""

import inspect
from typing import Any

import torch
from torch import Tensor


def named_arguments(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional arguments of a model's forward by their names."""
    if not args:
        return {}  # as transformers calls its models; reading a signature takes long
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if not names:
        names = ["input_ids"]  # a wrapper that hides the parameters of the model in it
    return dict(zip(names, args, strict=False))


def widened(rows: Tensor, width: int, filler: int) -> Tensor:
    """Return rows [b, s] cut to a width, or filled up to it at their ends, [b, width]."""
    missing = width - rows.shape[1]
    if missing <= 0:
        return rows[:, :width]
    return torch.cat([rows, rows.new_full((len(rows), missing), filler)], 1)
