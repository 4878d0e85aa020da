"""What the vision tower makes of a picture, computed once and given again.

A model of transformers asks its own `get_image_features` for the features of a picture and merges
them into the embeddings itself. Only the answer of that method is kept and given again.
"""

import dataclasses
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.pictures import picture_key

PIXELS = ("pixel_values", "pixel_attention_mask")
"""Inputs that only the vision tower reads."""

_KEPT = ("pooler_output", "deepstack_features")


Form = dict[str, Any]
"""Shapes and dtypes of features by name, plain values that JSON can hold."""


class UnknownFeaturesError(Exception):
    """The model's features are of no form that can be kept; never leaves the package."""


class _Read(Exception):  # noqa: N818  (control flow, not an error)
    """Ends a forward once the features are known."""


class _Blank(SimpleNamespace):
    """An answer of `get_image_features` without what no decoder is called with."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@dataclass(frozen=True)
class Features:
    """What `get_image_features` gave for the pictures of one query."""

    kind: type
    values: dict[str, Any]


def key_of(query: Query) -> Hashable:
    """Return what tells the pictures of a query from others: contents, or file, time and size."""
    return tuple(picture_key(picture) for picture in query.pictures)


def read_features(model: nn.Module, inputs: dict[str, Any]) -> Features:
    """Return the features of the pictures of one query; no decoder layer runs.

    Raises:
        UnknownFeaturesError: if the model does not ask `get_image_features`, or its answer is of
            another form than those that are known.
    """
    found: list[Any] = []

    def reading(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            found.append(real(*args, **kwargs))
            raise _Read

        return read

    with torch.no_grad(), _replaced(model, reading), suppress(_Read):
        model(**inputs, use_cache=False)
    if not found or getattr(found[0], "pooler_output", None) is None:
        raise UnknownFeaturesError(f"{type(model).__name__} gives no pooler_output")
    output = found[0]
    values = {name: getattr(output, name, None) for name in _KEPT}
    return Features(type(output), {k: _known(v) for k, v in values.items() if v is not None})


@contextmanager
def given_features(model: nn.Module, parts: Sequence[Features]) -> Iterator[None]:
    """Let the model find these features of its pictures inside the block, in order."""

    def giving(_real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: merged(parts)

    with _replaced(model, giving):
        yield


def merged(parts: Sequence[Features]) -> Any:
    """Return one answer of `get_image_features` for the pictures of several queries.

    Raises:
        UnknownFeaturesError: if the parts do not go together.
    """
    values: dict[str, Any] = {}
    for name in parts[0].values:
        each = [part.values[name] for part in parts]
        if name == "deepstack_features":
            values[name] = [_joined(layer) for layer in zip(*each, strict=True)]
        else:
            values[name] = _joined(each)
    kind = parts[0].kind
    # transformers 5.5 sets a pooler_output on an answer of a kind that has no such field.
    fields = {field.name for field in dataclasses.fields(kind)} if is_dataclass(kind) else values
    answer = kind(**{name: value for name, value in values.items() if name in fields})
    for name in values:
        if name not in fields:
            setattr(answer, name, values[name])
    return answer


def form_of(features: Features) -> Form:
    """Return the form of features, which `blank` makes features of again."""
    return {name: _form(value) for name, value in features.values.items()}


def blank(form: Form, device: torch.device) -> Features:
    """Return features of a form, all zero: for a call in which nothing reads them."""
    values = {name: _blank(value, device) for name, value in form.items()}
    return Features(_Blank, values)


def divided(features: Features, tokens: Sequence[int]) -> list[Features] | None:
    """Return the features of each of several queries, or None if it is not plain which are whose.

    Args:
        features: of the pictures of all of them, in order.
        tokens: number of image tokens of each query.
    """
    parts: list[dict[str, Any]] = [{} for _ in tokens]
    for name, value in features.values.items():
        if name == "deepstack_features":
            layers = [_shares(layer, tokens) for layer in value]
            shares = None if None in layers else list(zip(*layers, strict=True))
            shares = None if shares is None else [list(share) for share in shares]
        else:
            shares = _shares(value, tokens)
        if shares is None:
            return None
        for part, share in zip(parts, shares, strict=True):
            part[name] = share
    return [Features(features.kind, part) for part in parts]


def _shares(value: Any, tokens: Sequence[int]) -> list[Any] | None:
    count = len(tokens)
    if isinstance(value, Tensor) and value.dim() == 2 and len(value) == sum(tokens):
        return list(torch.split(value, list(tokens)))
    if isinstance(value, Tensor) and (value.dim() < 3 or len(value) % count):
        return None
    if len(value) % count:
        return None
    each = len(value) // count
    return [value[index * each : (index + 1) * each] for index in range(count)]


def _joined(each: Sequence[Any]) -> Any:
    if all(isinstance(value, Tensor) for value in each):
        return torch.cat(list(each))
    if all(isinstance(value, list | tuple) for value in each):
        return [item for value in each for item in value]
    raise UnknownFeaturesError("features are neither tensors nor lists of tensors")


@contextmanager
def _replaced(
    model: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    inner: Any = getattr(model, "model", None)
    owner: Any = inner if hasattr(inner, "get_image_features") else model
    if not hasattr(owner, "get_image_features"):
        raise UnknownFeaturesError(f"{type(model).__name__} has no get_image_features")
    if "get_image_features" in vars(owner):
        raise UnknownFeaturesError("get_image_features is replaced already")
    real, thread = owner.get_image_features, threading.get_ident()
    wrapped = wrap(real)

    def chosen(*args: Any, **kwargs: Any) -> Any:
        mine = threading.get_ident() == thread
        return (wrapped if mine else real)(*args, **kwargs)

    owner.get_image_features = chosen
    try:
        yield
    finally:
        del owner.get_image_features


def _known(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    raise UnknownFeaturesError(f"features hold a {type(value).__name__}")


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
    return [_form(item) for item in value]


def _blank(form: Any, device: torch.device) -> Any:
    if isinstance(form, list):
        return [_blank(item, device) for item in form]
    zero = torch.zeros((), dtype=getattr(torch, form["dtype"]), device=device)
    return zero.expand(form["shape"])
