"""Runs the frozen part of a model once, and continues from there, edited or not.

Nothing below the first edited layer depends on an edit. `Prefix.read` runs that part for distinct
queries; `Started.resume` has the model's own decoder go on above it, so that masks, positions and
the final norm are the model's.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.backbone import Backbone
from easyedit_dualedit.batch import Batch, Encoder, Query
from easyedit_dualedit.features import (
    PIXELS,
    FeatureCache,
    Features,
    UnknownFeaturesError,
    given_features,
    key_of,
    read_features,
)
from easyedit_dualedit.forward import named
from easyedit_dualedit.hooks import LayerEdit, attach, before_call, record

FEATURE_BUDGET = 1 << 30
"""Bytes of picture features that a run of training keeps."""

STATE_BUDGET = 1 << 30
"""Bytes of states of the first edited layer that a run of training keeps."""

_PROMPTS = 20_000
"""Tokenised prompts that a run of training keeps."""


class UnsupportedModelError(Exception):
    """The model cannot be continued from a layer; never leaves the package."""


@dataclass(frozen=True)
class Started:
    """Rows of which all below the first edited layer is done. Shapes: b rows, s tokens, d size."""

    backbone: Backbone
    batch: Batch
    layer: int
    states: Tensor
    """Output of `layer`, [b, s, d]."""
    call: Mapping[str, Any]
    """What the decoder was called with."""

    def resume(self, rows: Tensor, edits: Mapping[int, LayerEdit] | None = None) -> Tensor:
        """Return what the decoder gives in the end for some rows, [r, s, d].

        Args:
            rows: long [r].
            edits: layer, from `layer` on -> change of its output.
        """
        with attach(self.backbone.layers, edits or {}):
            return self._run(rows)

    def states_at(self, rows: Tensor, layer: int) -> Tensor:
        """Return the unedited output of a layer from `layer` on for some rows, [r, s, d]."""
        if layer == self.layer:
            return self.states[rows]
        with record(self.backbone.layers, [layer], stop=True) as found:
            self._run(rows)
        return found[layer]

    def _run(self, rows: Tensor) -> Tensor:
        count = len(self.states)
        call = {name: _rows_of(name, value, rows, count) for name, value in self.call.items()}
        with _skipped(self.backbone.layers, self.layer, self.states[rows]):
            output = self.backbone.decoder(**call)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
        return hidden


class StateCache:
    """States of sequences, [s, d], the least recently used forgotten first."""

    def __init__(self, budget: int):
        """Keep at most `budget` bytes."""
        self.budget = budget
        self.size = 0
        self._held: OrderedDict[Hashable, Tensor] = OrderedDict()

    def get(self, key: Hashable) -> Tensor | None:
        """Return what is held for a key, or None."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, states: Tensor) -> None:
        """Hold states, if they fit at all."""
        if states.nbytes > self.budget or key in self._held:
            return
        self._held[key] = states
        self.size += states.nbytes
        while self.size > self.budget:
            self.size -= self._held.popitem(last=False)[1].nbytes


class Prefix:
    """Reads queries up to a layer, each picture through the vision tower once."""

    def __init__(
        self,
        encoder: Encoder,
        layer: int,
        *,
        budget: int = FEATURE_BUDGET,
        state_budget: int = STATE_BUDGET,
    ):
        """Keep nothing yet.

        Args:
            encoder: encodes the queries of the model.
            layer: the first edited one.
            budget: bytes of picture features to keep.
            state_budget: bytes of states of the first edited layer to keep.
        """
        self._encoder = encoder
        self._layer = layer
        self.features = FeatureCache(budget)
        self._states = StateCache(state_budget)
        self._prompts: dict[Hashable, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    @torch.no_grad()
    def read(self, queries: Sequence[Query], ends: Sequence[bool]) -> Started:
        """Return the queries, all with pictures or all without, run up to the layer.

        Raises:
            DataError: as `Encoder.encode`.
            UnsupportedModelError: if the model cannot be continued from there.
        """
        backbone = self._encoder.backbone
        prompts, features, others = [], [], []
        fresh: dict[Hashable, Features] = {}
        for query in queries:
            key = key_of(query)
            prompt, other, found = self._row(query, key, fresh)
            prompts.append(prompt)
            others.append(other)
            if found is not None:
                features.append(found)
        merged = {name: torch.cat([other[name] for other in others]) for name in others[0]}
        batch = self._encoder.assemble(queries, prompts, merged, ends=ends)
        inputs: dict[str, Any] = dict(batch.inputs)
        calls: list[dict[str, Any]] = []
        with ExitStack() as stack:
            if features:
                inputs["pixel_values"] = torch.empty(0, device=backbone.device)
                stack.enter_context(given_features(backbone.model, features))

            def observe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls.append(named(backbone.decoder, args) | kwargs)

            stack.enter_context(before_call(backbone.decoder, observe))
            keys = [
                (query.prompt, key_of(query), query.target, ended)
                for query, ended in zip(queries, ends, strict=True)
            ]
            held = [self._states.get(key) for key in keys]
            known = [state for state in held if state is not None]
            if len(known) == len(held):
                padded = pad_sequence(known, batch_first=True, padding_side="left")
                stack.enter_context(_skipped(backbone.layers, self._layer, padded))
            states = stack.enter_context(record(backbone.layers, [self._layer], stop=True))
            backbone.model(**inputs, use_cache=False)
        if len(known) < len(held):
            real = batch.layout.real
            for row, key in enumerate(keys):
                self._states.put(key, states[self._layer][row, real[row]].clone())
        if len(calls) != 1 or calls[0].get("inputs_embeds") is None:
            raise UnsupportedModelError("the decoder is not called once with embeddings")
        call = dict(calls[0])
        added = call.get("deepstack_visual_embeds")
        if added is not None and len(added) > self._layer:
            raise UnsupportedModelError("pictures reach the decoder above the first edit")
        return Started(backbone, batch, self._layer, states[self._layer], call)

    def _row(
        self, query: Query, key: Hashable, fresh: dict[Hashable, Features]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Features | None]:
        """Return the tokens of a query, its small inputs, and the features of its pictures."""
        place = (query.prompt, key)
        held = self._prompts.get(place)
        pictures = fresh.get(key) or self.features.get(key)
        sees = bool(query.pictures) or self._encoder.backbone.family.needs_picture
        if held is None or (sees and pictures is None):
            prompt, other = self._encoder.tokenised(query)
            small = {name: value for name, value in other.items() if name not in PIXELS}
            held = (prompt, small)
            if len(self._prompts) >= _PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[place] = held
            if sees and pictures is None:
                batch = self._encoder.assemble(
                    [query], [prompt], other, with_target=False, ends=[False]
                )
                pictures = read_features(self._encoder.backbone.model, dict(batch.inputs))
                self.features.put(key, pictures)
        if pictures is not None:
            fresh[key] = pictures  # rows of one call may need more than the budget holds
        return (*held, pictures if sees else None)


def head_of(model: Any) -> Any:
    """Return the function from what the decoder gives, [n, d], to logits, [n, v]."""
    embeddings = model.get_output_embeddings()
    text = model.config.get_text_config()
    limit = getattr(text, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = embeddings(hidden)
        return logits if limit is None else torch.tanh(logits / limit) * limit

    return head


def _rows_of(name: str, value: Any, rows: Tensor, count: int) -> Any:
    if name in ("visual_pos_masks", "deepstack_visual_embeds", "past_key_values"):
        return None  # they concern the layers that are done
    if isinstance(value, dict):
        return {key: _rows_of(key, item, rows, count) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    dim = 1 if name == "position_ids" and value.dim() == 3 else 0
    return value.index_select(dim, rows) if value.shape[dim] == count else value


@contextmanager
def _skipped(layers: Sequence[nn.Module], last: int, states: Tensor) -> Iterator[None]:
    """Let layers up to `last` cost nothing inside the block; `last` gives `states`."""
    thread = threading.get_ident()

    def standing_in(layer: nn.Module, result: Tensor | None) -> Any:
        real = layer.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return real(hidden_states, *args, **kwargs)
            return hidden_states if result is None else result

        return forward

    with ExitStack() as stack:
        for index in range(last + 1):
            layer: Any = layers[index]
            own = vars(layer).get("forward")
            forward = standing_in(layer, states if index == last else None)
            layer.forward = forward
            if own is None:
                stack.callback(delattr, layer, "forward")
            else:  # accelerate has put its own there
                stack.callback(setattr, layer, "forward", own)
        yield


__all__ = [
    "FEATURE_BUDGET",
    "STATE_BUDGET",
    "Prefix",
    "Started",
    "UnknownFeaturesError",
    "UnsupportedModelError",
    "head_of",
]
