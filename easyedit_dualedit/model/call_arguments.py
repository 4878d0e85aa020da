"""What the arguments of a call say that somebody else has made of a model."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.errors import DataError, PromptEndError


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


def token_ids(inputs: Mapping[str, Any]) -> Tensor:
    """Return the token ids among a model's inputs.

    Raises:
        PromptEndError: if there are none.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptEndError(
            "an edited model needs input_ids, to tell image tokens from text; pass them, not"
            " inputs_embeds"
        )
    return ids


def real_tokens(inputs: Mapping[str, Any], prompt: Tensor | None = None) -> Tensor:
    """Return the mask of the real tokens among a model's inputs, [b, s]; all are if there is none.

    Args:
        inputs: of the model.
        prompt: mask that `generate` was given, [p, q], where rows may be repeated by now. With a
            static cache `generate` of transformers 5.5 puts one of four dimensions in its place.

    Raises:
        PromptEndError: if there are no token ids.
        DataError: if the mask says who attends to whom, and not which tokens are real.
    """
    ids, mask = token_ids(inputs), inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    if prompt is not None and prompt.dim() == 2:
        rows, width = ids.shape
        return widened(prompt, width, 1).repeat_interleave(rows // len(prompt), 0)
    raise DataError(
        "attention_mask says who attends to whom; an edited model needs to know which tokens are"
        " real: give one of two dimensions, 1 at real tokens and 0 at padding"
    )


def widened(rows: Tensor, width: int, filler: int) -> Tensor:
    """Return rows [b, s] cut to a width, or filled up to it at their ends, [b, width]."""
    missing = width - rows.shape[1]
    if missing <= 0:
        return rows[:, :width]
    return torch.cat([rows, rows.new_full((len(rows), missing), filler)], 1)


def cached_tokens(inputs: Mapping[str, Any]) -> int:
    """Return how many tokens the cache among a model's inputs holds; 0 without one."""
    cache = inputs.get("past_key_values")
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


def rows_and_width(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shape of a call's rows: their number, and their positions.

    Raises:
        PromptEndError: if there are neither token ids nor embeddings.
    """
    for name in ("inputs_embeds", "input_ids"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0]), int(value.shape[1])
    raise PromptEndError("a forward of generate has neither token ids nor embeddings")
