"""One forward of a model with edits applied: its layout, then its routing, then its changes.

Everything that one forward decides lives in an object made for that forward, so two edited models
on one base model, or two threads, do not see each other.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.adapter import DualAdapters, FoldedEdit, ProjectedEdit, add_at
from easyedit_dualedit.backbone import Backbone
from easyedit_dualedit.batch import TokenLayout
from easyedit_dualedit.config import Modality
from easyedit_dualedit.errors import ChunkedPrefillError, PromptEndError
from easyedit_dualedit.gate import Gate, Routing
from easyedit_dualedit.hooks import LayerEdit, record
from easyedit_dualedit.memory import ActiveEdits
from easyedit_dualedit.router import OpenRows, Router

LayoutFinder = Callable[[dict[str, Any]], TokenLayout]
"""Says what each position of a call with these inputs is."""


@dataclass(frozen=True)
class AppliedEdits:
    """Edits with all that decides where they apply."""

    backbone: Backbone
    adapters: DualAdapters
    gate: Gate
    memory: ActiveEdits
    assignment: Tensor | None = None
    """The only edit that each row may use, long [b]; None allows all."""

    @cached_property
    def layers(self) -> frozenset[int]:
        """Layers that an edited forward reads or changes."""
        layer_of = self.adapters.layer_of
        return frozenset({layer_of["text"], *(layer_of[name] for name in self.modalities)})

    @cached_property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities in use, text first."""
        return self.adapters.modalities

    @cached_property
    def routes_first(self) -> bool:
        """Whether the gate reads the unedited text layer above the first change."""
        layer_of = self.adapters.layer_of
        return "vision" in self.modalities and layer_of["vision"] < layer_of["text"]

    def route(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, from the text layer's states [b, s, d].

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        return self._router.route(hidden, layout)

    def open_rows(self, hidden: Tensor, layout: TokenLayout) -> OpenRows:
        """Return the rows that edits concern, and which: the decisions of `route`.

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        return self._router.open_rows(hidden, layout)

    def edit_of_rows(
        self, modality: Modality, numbers: Sequence[int]
    ) -> ProjectedEdit | FoldedEdit:
        """Return the edits with the given numbers, as their adapter needs them.

        One edit of all rows is folded into the adapter where that pays, unless gradients are asked
        for; what is folded is kept until the adapter changes.
        """
        if not torch.is_grad_enabled() and numbers.count(numbers[0]) == len(numbers):
            folded = self._folds.get(modality, numbers[0])
            if folded is not None:
                return folded
        projected = self.memory.projected[modality]
        return projected.select(torch.tensor(numbers, device=projected.device))

    @cached_property
    def _folds(self) -> "_Folds":
        return _Folds(self.adapters, self.memory)

    @cached_property
    def _router(self) -> Router:
        return Router(self.gate, self.memory.keys, self.assignment)

    def route_before(self, inputs: Mapping[str, Any], layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, by an unedited forward that ends early."""
        plain = {key: value for key, value in inputs.items() if key not in _NOT_FOR_ROUTING}
        layer = self.adapters.layer_of["text"]
        with torch.no_grad(), record(self.backbone.layers, [layer], stop=True) as states:
            self.backbone.model(**plain, use_cache=False)
        return self.route(states[layer], layout)


class _Folds:
    """Edits folded into their adapters; those used last are kept."""

    _MOST = 16

    def __init__(self, adapters: DualAdapters, memory: ActiveEdits):
        """Fold nothing yet."""
        self._adapters = adapters
        self._memory = memory
        self._held: dict[tuple[Modality, int], tuple[FoldedEdit, list[int]]] = {}
        self._weights = {name: tuple(adapters[name].parameters()) for name in adapters.modalities}

    def get(self, modality: Modality, number: int) -> FoldedEdit | None:
        """Return an edit folded into the adapter as it is now; None where that does not pay."""
        weights = self._weights[modality]
        if any(weight.is_inference() for weight in weights):  # nothing tells when they change
            return None
        versions = [weight._version for weight in weights]
        held = self._held.get((modality, number))
        if held is not None and held[1] == versions:
            return held[0]
        adapter, projected = self._adapters[modality], self._memory.projected[modality]
        one = projected.select(torch.tensor([number], device=projected.device))
        if not adapter.pays_to_fold(one):
            return None
        folded = adapter.fold(one)
        while len(self._held) >= self._MOST:
            self._held.pop(next(iter(self._held)), None)
        self._held[modality, number] = folded, versions
        return folded


_NOT_FOR_ROUTING = ("past_key_values", "use_cache", "labels", "logits_to_keep", "cache_position")


class Forward:
    """What the forwards inside one call, or one `generate`, know."""

    def __init__(
        self,
        edits: AppliedEdits,
        find_layout: LayoutFinder,
        prompt: Mapping[str, Any] | None = None,
    ):
        """Know nothing yet.

        Args:
            edits: what to apply.
            find_layout: asked for the layout of every forward that starts from a prompt.
            prompt: what `generate` was given; None in a plain call.
        """
        self._edits = edits
        self._find_layout = find_layout
        self._prompt = prompt
        self._layout: TokenLayout | None = None
        self._open: OpenRows | None = None
        """None until the gate has decided."""
        self._is_routing = False
        self._is_announced = False
        self._has_begun = False

    @property
    def changes(self) -> dict[int, LayerEdit]:
        """What to change, by layer."""
        return {layer: partial(self.edit, layer) for layer in self._edits.layers}

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call of the base model: a prompt, or a step that continues one."""
        if self._is_routing:
            return
        self._is_announced = True
        inputs = named(self._edits.backbone.model, args) | kwargs
        if self._continues(inputs):
            return
        self._layout = self._find_layout(inputs)
        if self._edits.routes_first:
            self._open = OpenRows.of(self._routed(inputs, self._layout))

    def begin_decoder(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call of the decoder that no call of the base model has announced.

        BLIP-2 generates with its language model alone: the token ids of the prompt never reach
        the base model, and rows may be repeated by then, as beam search does.
        """
        if self._is_routing:
            return
        if self._is_announced or self._prompt is None:
            self._is_announced = False
            return
        inputs = named(self._edits.backbone.decoder, args) | kwargs
        if self._continues(inputs):
            return
        tensors = {name: v for name, v in self._prompt.items() if isinstance(v, Tensor)}
        rows, width = _shape(inputs)
        # Without a cache, generated tokens follow the prompt.
        ids = _widened(token_ids(tensors), width, 0)
        mask = tensors.get("attention_mask")
        mask = torch.ones_like(token_ids(tensors)) if mask is None else mask
        seen = {**tensors, "input_ids": ids, "attention_mask": _widened(mask, width, 1)}
        layout = self._find_layout(seen)
        repeats = rows // len(ids)
        if self._edits.routes_first:
            routing = self._routed(tensors, layout)
            repeated = (
                each.repeat_interleave(repeats) for each in (routing.similarity, routing.edit_index)
            )
            self._open = OpenRows.of(Routing(*repeated))
        self._layout = layout.repeated(repeats)

    def edit(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Return the changed output of a layer, or None where nothing changes."""
        layout = self._layout
        if layout is None or self._is_routing:
            return None
        edits = self._edits
        concerned = self._open
        if concerned is None:
            concerned = self._open = edits.open_rows(hidden, layout)
        if not concerned.rows:
            return None
        changed = hidden
        for modality in edits.modalities:
            if edits.adapters.layer_of[modality] == layer:
                positions = layout.text if modality == "text" else layout.vision
                edit = edits.edit_of_rows(modality, concerned.edits)
                adapter = edits.adapters[modality]
                changed = add_at(changed, positions, adapter, edit, concerned.rows)
        return None if changed is hidden else changed

    def _routed(self, inputs: Mapping[str, Any], layout: TokenLayout) -> Routing:
        self._is_routing = True
        try:
            return self._edits.route_before(inputs, layout)
        finally:
            self._is_routing = False

    def _continues(self, inputs: Mapping[str, Any]) -> bool:
        is_first, self._has_begun = not self._has_begun, True
        self._layout = self._open = None
        if not _cached_tokens(inputs):
            return False
        if is_first and self._prompt is not None:
            raise ChunkedPrefillError(
                "generate was given past_key_values of an earlier forward; an edit needs the whole"
                " prompt at once: leave past_key_values out"
            )
        return True


def named(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
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


def _shape(inputs: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("inputs_embeds", "input_ids"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0]), int(value.shape[1])
    raise PromptEndError("a forward of generate has neither token ids nor embeddings")


def _widened(rows: Tensor, width: int, filler: int) -> Tensor:
    missing = width - rows.shape[1]
    if missing <= 0:
        return rows[:, :width]
    return torch.cat([rows, rows.new_full((len(rows), missing), filler)], 1)


def _cached_tokens(inputs: Mapping[str, Any]) -> int:
    cache = inputs.get("past_key_values")
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])
