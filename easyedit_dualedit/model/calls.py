"""Calls that transformers and others make of a model: what their arguments say, and whose they are.

Streamers, logits processors and other threads may call the same model while it generates. So
`generate` runs on a stand-in, which shares all that the model is and has: a call of the stand-in is
one of generate's own, a call of the model is somebody else's.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import DataError, PromptEndError

OwnForward = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a forward that `generate` makes, and returns its output.

Takes the module that is called, what to call (the module, or code compiled from it), and the
positional and keyword arguments.
"""


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


def generate_of(model: nn.Module, parts: Sequence[nn.Module], run: OwnForward) -> Any:
    """Return the `generate` of a model, whose own forwards all go through `run`.

    Args:
        model: whose `generate`; it is not changed.
        parts: of the model, with which it may generate instead of calling itself, as BLIP-2 does
            with its language model.
        run: runs such a forward.
    """
    parts = (model, *parts)
    stand_in = _standing_in(model, parts, run)
    generate = stand_in.generate
    if isinstance(generate, functools.partial) and generate.keywords.get("model") is model:
        # A model with a generate of its own in its folder: transformers binds it like this.
        others = {**generate.keywords, "model": stand_in}
        return functools.partial(generate.func, *generate.args, **others)
    if inspect.ismethod(generate) and any(generate.__self__ is part for part in parts):
        # Put into the instance and bound there.
        owner: Any = generate.__self__
        bound: Any = generate.__func__.__get__(_standing_in(owner, parts, run))
        return bound
    return generate


def _standing_in(model: nn.Module, parts: Sequence[nn.Module], run: OwnForward) -> Any:
    kind: type[Any] = type(model)
    made: Any = object.__new__(_class_for(kind))
    object.__setattr__(made, "_dualedit_model", model)
    object.__setattr__(made, "_dualedit_parts", parts)
    object.__setattr__(made, "_dualedit_run", run)
    made.__dict__ = vars(model)  # what generate notes on the model, it notes on the model
    return made


class _StandIn:
    """Is the model, but for its calls."""

    __slots__ = ("_dualedit_parts", "_dualedit_run", "_dualedit_model")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._dualedit_run(self._dualedit_model, self._dualedit_model, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        above: Any = super()
        value = above.__getattr__(name)
        inner = getattr(value, "_orig_mod", value)  # of a part that torch.compile has wrapped
        if any(inner is part for part in self._dualedit_parts) and hasattr(value, "generate"):
            return _standing_in(value, self._dualedit_parts, self._dualedit_run)
        return value

    def get_compiled_call(self, *args: Any, **kwargs: Any) -> Callable[..., Any]:
        """Return the compiled code of the model itself, which keeps it for its own use."""
        model: Any = self._dualedit_model
        fast = model.get_compiled_call(*args, **kwargs)
        return lambda *inputs, **named: self._dualedit_run(model, fast, inputs, named)


_CLASSES: dict[type[Any], type[Any]] = {}


def _class_for(kind: type[Any]) -> type[Any]:
    made = _CLASSES.get(kind)
    if made is None:
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__slots__": ()}
        made = _CLASSES[kind] = type(kind.__name__, (_StandIn, kind), names)
    return made
