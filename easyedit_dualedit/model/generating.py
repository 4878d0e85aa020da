"""Tells the forwards that one `generate` makes from all other calls of the model.

Streamers, logits processors and other threads may call the same model while it generates. So
`generate` runs on a stand-in, which shares all that the model is and has: a call of the stand-in is
one of generate's own, a call of the model is somebody else's.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

OwnForward = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a forward that `generate` makes, and returns its output.

Takes the module that is called, what to call (the module, or code compiled from it), and the
positional and keyword arguments.
"""


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
