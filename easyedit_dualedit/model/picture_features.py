"""What the vision tower makes of a picture: computed once, kept, and given to the model again.

A model of transformers asks its own `get_image_features` for the features of a picture, or
`get_video_features` for those of a video, and merges them into the embeddings itself. Only the
answer of that method is kept and given again.
"""

import dataclasses
import functools
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import replaced
from easyedit_dualedit.model.inputs import Query, input_device
from easyedit_dualedit.model.query_cache import PreparedQuery, TensorCache

_KEPT = ("pooler_output", "deepstack_features")

Form = dict[str, Any]
"""Shapes and dtypes of features by name, plain values that JSON can hold."""

_METHODS = {"pixel_values": "get_image_features", "pixel_values_videos": "get_video_features"}
"""Input -> the model's method that makes features of it."""


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


def pixels_of(inputs: Mapping[str, Any]) -> str:
    """Return the input that holds what is shown, where all rows show one kind of thing."""
    return "pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"


class PictureFeatures:
    """Features of pictures, each computed once and kept within a budget."""

    def __init__(self, encoder: Encoder, budget: int, *, stays: bool = False):
        """Keep at most `budget` bytes; see `TensorCache`."""
        self._encoder = encoder
        self.cache = TensorCache(budget, stays=stays)

    def of(
        self,
        queries: Sequence[Query],
        keys: Sequence[Hashable],
        forms: Sequence[Form | None],
        prepared: Mapping[Hashable, PreparedQuery],
    ) -> list[Features | None]:
        """Return of each query the features of its pictures, if it sees any.

        Args:
            queries: whose pictures.
            keys: tells the pictures of each from others.
            forms: of features that nothing will read, since the states of the query are known: they
                may be blank; None where they are needed.
            prepared: queries that are prepared already, by such keys.
        """
        needed = self._encoder.backbone.family.needs_picture
        pictures: dict[Hashable, Features] = {}  # one call may need more than the budget holds
        unread: dict[Hashable, PreparedQuery] = {}
        sees = [bool(query.shown) or needed for query in queries]
        for query, key, seen, form in zip(queries, keys, sees, forms, strict=True):
            if not seen or form is not None or key in pictures or key in unread:
                continue
            if (kept := self.cache.get(key)) is not None:
                pictures[key] = Features(*kept)
            else:
                unread[key] = prepared.get(key) or (query, *self._encoder.tokenised(query))
        for key, features in zip(unread, self._computed(list(unread.values())), strict=True):
            pictures[key] = features
            self.cache.put(key, (features.kind, features.values))
        for key, form in zip(keys, forms, strict=True):
            if form is not None and key not in pictures:
                pictures[key] = blank(form, input_device(self._encoder.backbone.model))
        return [pictures[key] if seen else None for key, seen in zip(keys, sees, strict=True)]

    def _computed(self, unread: Sequence[PreparedQuery]) -> list[Features]:
        """Return the features of the pictures of some queries, through the vision tower at once."""
        if not unread:
            return []
        encoder = self._encoder
        queries, prompts, others = (list(part) for part in zip(*unread, strict=True))
        alike = all(
            other.keys() == others[0].keys()
            and all(value.shape == others[0][name].shape for name, value in other.items())
            for other in others
        )
        if len(unread) > 1 and not alike:
            return [features for one in unread for features in self._computed([one])]
        merged = {name: torch.cat([other[name] for other in others]) for name in others[0]}
        batch = encoder.assemble(
            queries, prompts, merged, with_target=False, ends=[False] * len(queries)
        )
        features = read_features(encoder.backbone.model, dict(batch.inputs))
        counts = [int(encoder.vision_positions(p["input_ids"]).sum()) for p in prompts]
        parts = divided(features, counts)
        if parts is None:
            return [features for one in unread for features in self._computed([one])]
        return parts


def read_features(model: nn.Module, inputs: dict[str, Any]) -> Features:
    """Return the features of the pictures, or the video, of one query; no decoder layer runs.

    Raises:
        UnknownFeaturesError: if the model does not ask its own method for them, or its answer is of
            another form than those that are known.
    """
    answers: list[Any] = []

    def reading(real: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            with _unread_skipped(model):
                answers.append(real(*args, **kwargs))
            raise _Read

        return read

    with torch.no_grad(), _replaced(model, reading, pixels_of(inputs)), suppress(_Read):
        model(**inputs, use_cache=False)
    if not answers or getattr(answers[0], "pooler_output", None) is None:
        raise UnknownFeaturesError(f"{type(model).__name__} gives no pooler_output")
    output = answers[0]
    values = {name: getattr(output, name, None) for name in _KEPT}
    return Features(type(output), {k: _known(v) for k, v in values.items() if v is not None})


@contextmanager
def _unread_skipped(model: nn.Module) -> Iterator[None]:
    """Let layers of a vision tower that no feature is made of cost nothing inside the block.

    Some models read their tower before its end, LLaVA before its last layer; transformers runs all.
    """
    with ExitStack() as stack:
        for layer in unread_layers(model):
            stack.enter_context(replaced(layer, _passing))
        yield


def unread_layers(model: Any) -> list[nn.Module]:
    """Return the layers of a vision tower behind the last that is read; none if it is not plain."""
    config: Any = getattr(model, "config", None)
    read = getattr(config, "vision_feature_layer", None)
    count = getattr(getattr(config, "vision_config", None), "num_hidden_layers", None)
    tower = getattr(getattr(model, "model", model), "vision_tower", None)
    if read is None or not isinstance(count, int) or not isinstance(tower, nn.Module):
        return []
    stacks = [
        part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part) == count
    ]
    chosen = [read] if isinstance(read, int) else list(read)
    if len(stacks) != 1 or not chosen:
        return []
    # Hidden states begin with what the first layer is given.
    last = max(index if index >= 0 else count + 1 + index for index in chosen)
    return list(stacks[0])[last:] if last >= 0 else []


def _passing(_real: Callable[..., Any]) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states

    return forward


@contextmanager
def given_features(
    model: nn.Module, parts: Sequence[Features], pixels: str = "pixel_values"
) -> Iterator[None]:
    """Let the model find these features of one of its inputs inside the block, in order."""

    def giving(_real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: merged(parts)

    with _replaced(model, giving, pixels):
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
        if len({value.shape[1:] for value in each}) > 1:
            raise UnknownFeaturesError("features of several shapes, as of videos of other lengths")
        return torch.cat(list(each))
    if all(isinstance(value, list | tuple) for value in each):
        return [item for value in each for item in value]
    raise UnknownFeaturesError("features are neither tensors nor lists of tensors")


@contextmanager
def _replaced(
    model: nn.Module, wrap: Callable[[Callable[..., Any]], Callable[..., Any]], pixels: str
) -> Iterator[None]:
    name = _METHODS[pixels]
    inner: Any = getattr(model, "model", None)
    owner: Any = inner if hasattr(inner, name) else model
    if not hasattr(owner, name):
        raise UnknownFeaturesError(f"{type(model).__name__} has no {name}")
    if name in vars(owner):
        raise UnknownFeaturesError(f"{name} is replaced already")
    real, thread = getattr(owner, name), threading.get_ident()
    wrapped = wrap(real)

    @functools.wraps(real)  # generate looks for the names of its parameters
    def chosen(*args: Any, **kwargs: Any) -> Any:
        mine = threading.get_ident() == thread
        return (wrapped if mine else real)(*args, **kwargs)

    setattr(owner, name, chosen)
    try:
        yield
    finally:
        delattr(owner, name)


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
