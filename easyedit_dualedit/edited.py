"""A model with edits applied: the unedited model, changed only while it is being called.

Everything that one forward decides lives in an object made for that forward, so two edited models
on one base model, or two threads, do not see each other.
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from easyedit_dualedit.adapter import DualAdapters, add_at
from easyedit_dualedit.batch import IGNORED, Encoder, TokenLayout
from easyedit_dualedit.errors import ChunkedPrefillError, DataError, PromptEndError
from easyedit_dualedit.gate import Gate, Routing
from easyedit_dualedit.hooks import LayerEdit, attach, before_call, record
from easyedit_dualedit.memory import EditMemory, EditSignal


class EditedModel:
    """Behaves as the base model does, with edits applied to the queries that they concern.

    Calls and `generate` are edited; every other attribute is the base model's own.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapters: DualAdapters,
        gate: Gate,
        memory: EditMemory,
        *,
        assignment: Tensor | None = None,
    ):
        """Combine what an edited forward needs; the base model is not changed.

        Args:
            encoder: knows the base model and finds prompt ends.
            adapters: compute the changes.
            gate: decides which edit applies to a row.
            memory: the edits.
            assignment: the only edit that each row may use, long [b]; None allows all.
        """
        self.base_model: Any = encoder.backbone.model
        self._encoder = encoder
        self._adapters = adapters
        self._gate = gate
        self._memory = memory
        self._assignment = assignment

    @property
    def edits(self) -> tuple[EditSignal, ...]:
        """The edits applied, oldest first."""
        return self._memory.signals

    def __call__(self, *args: Any, layout: TokenLayout | None = None, **inputs: Any) -> Any:
        """Return the base model's output for `inputs`, edited.

        Args:
            args: positional arguments of the base model.
            layout: what each position is, if the caller knows. Otherwise the prompt ends where
                `labels` begin, or else at the chat template's generation prompt.
            inputs: keyword arguments of the base model.

        Raises:
            PromptEndError: if the end of a prompt cannot be found.
            CalibrationError: if the gate has no threshold.
        """
        find = partial(self._layout_of_call, given=layout)
        with self._active(find):
            return self.base_model(*args, **inputs)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Return what a call returns; not the base model's own, unedited `forward`."""
        return self(*args, **inputs)

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """Return what the base model's `generate` returns, edited: the whole input is the prompt.

        Raises:
            ChunkedPrefillError: if the prompt is not processed in one forward.
            DataError: if there are no token ids.
        """
        ids = options.get("input_ids") if inputs is None else inputs
        if not isinstance(ids, Tensor):
            raise DataError("generate needs input_ids, to tell image tokens from text; pass them")
        with self._active(partial(self._layout_of_prefill, columns=ids.shape[1])):
            if inputs is not None:
                options["inputs"] = inputs
            return self.base_model.generate(**options)

    @torch.no_grad()
    def route(self, *, layout: TokenLayout | None = None, **inputs: Any) -> Routing:
        """Return which edit applies to each row of `inputs`, without running the whole model.

        Args:
            layout: as in a call.
            inputs: keyword arguments of the base model.

        Raises:
            PromptEndError: if the end of a prompt cannot be found.
            CalibrationError: if the gate has no threshold.
        """
        found = self._layout_of_call(inputs, given=layout)
        return self._route_before(inputs, found)

    @classmethod
    def side_by_side(cls, models: Sequence[Self], rows: int) -> Self:
        """Return one model that answers for several, each in rows of its own.

        Args:
            models: edited models of one editor, each with a single edit.
            rows: rows of each model; those of the first come first.

        Raises:
            DataError: if a model holds another number of edits, or is of another editor.
        """
        first = models[0]
        for model in models:
            if len(model._memory) != 1:
                raise DataError(
                    f"a model holds {len(model._memory)} edits; give models of one each"
                )
            if model._adapters is not first._adapters or model._gate is not first._gate:
                raise DataError("the models have different editors; give models of one editor")
        signals = [model.edits[0] for model in models]
        memory = EditMemory.of(signals, first._adapters, first._gate)
        assignment = torch.arange(len(models)).repeat_interleave(rows)
        return cls(first._encoder, first._adapters, first._gate, memory, assignment=assignment)

    def __getattr__(self, name: str) -> Any:
        """Return the base model's attribute; methods that return the model return this one."""
        if name.startswith("__") or name == "base_model":
            raise AttributeError(name)
        value = getattr(self.base_model, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self if result is self.base_model else result

        return method

    @contextmanager
    def _active(self, find_layout: Any) -> Iterator[None]:
        if not len(self._memory):
            yield
            return
        forward = _Forward(self, find_layout)
        layer_of = self._adapters.layer_of
        used = {layer_of["text"], *(layer_of[name] for name in self._adapters.modalities)}
        edits: dict[int, LayerEdit] = {layer: partial(forward.edit, layer) for layer in used}
        with ExitStack() as stack:
            stack.enter_context(attach(self._encoder.backbone.layers, edits))
            stack.enter_context(before_call(self.base_model, forward.begin))
            yield

    def _layout_of_call(self, inputs: dict[str, Any], given: TokenLayout | None) -> TokenLayout:
        if given is not None:
            return given
        ids, mask = _token_ids(inputs), inputs.get("attention_mask")
        labels = inputs.get("labels")
        gate = None
        if isinstance(labels, Tensor) and labels.shape == ids.shape:
            answer = labels != IGNORED
            first = answer.to(torch.uint8).argmax(1)
            real = torch.ones_like(ids) if mask is None else mask
            start = real.bool().to(torch.uint8).argmax(1)
            # Labels that cover the prompt as well say nothing of where it ends.
            if bool(answer.any(1).all()) and bool((first > start).all()):
                gate = first - 1
        return self._encoder.layout(ids, mask, gate=gate)

    def _layout_of_prefill(self, inputs: dict[str, Any], columns: int) -> TokenLayout:
        ids, mask = _token_ids(inputs), inputs.get("attention_mask")
        if ids.shape[1] < columns:
            raise ChunkedPrefillError(
                f"generate processed {ids.shape[1]} of {columns} prompt tokens in one forward; an"
                " edit needs the whole prompt at once: unset prefill_chunk_size and guidance_scale,"
                " and pass no past_key_values"
            )
        # Without a cache, and in assisted generation, tokens follow the prompt in one forward.
        real = torch.ones_like(ids) if mask is None else mask
        positions = torch.arange(columns, device=ids.device)
        end = torch.where(real[:, :columns].bool(), positions, -1).amax(1)
        return dataclasses.replace(self._encoder.layout(ids, mask, gate=end), last=end)

    def _route_before(self, inputs: dict[str, Any], layout: TokenLayout) -> Routing:
        plain = {key: value for key, value in inputs.items() if key not in _NOT_FOR_ROUTING}
        layer = self._adapters.layer_of["text"]
        with torch.no_grad(), record(self._encoder.backbone.layers, [layer], stop=True) as states:
            self.base_model(**plain, use_cache=False)
        return self._route(states[layer], layout)

    def _route(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        assignment = self._assignment
        if assignment is not None and len(assignment) != len(hidden):
            if len(hidden) % len(assignment):
                raise DataError(
                    f"{len(hidden)} rows for edits assigned to {len(assignment)}; give as many rows"
                    " as the assignment, or a multiple that repeats each"
                )
            # Beam search and sampling repeat each row of the batch in place.
            assignment = assignment.repeat_interleave(len(hidden) // len(assignment))
        index = (layout.last if self._gate.config.reads_label else layout.gate).to(hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)
        return self._gate.route(hidden[rows, index], self._memory.keys, assignment)


_NOT_FOR_ROUTING = ("past_key_values", "use_cache", "labels", "logits_to_keep", "cache_position")


class _Forward:
    """What one forward of an edited model knows: its layout, then its routing."""

    def __init__(self, edited: EditedModel, find_layout: Any):
        self._edited = edited
        self._find_layout = find_layout
        self._layout: TokenLayout | None = None
        self._routing: Routing | None = None
        self._is_routing = False
        self._has_begun = False

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call of the base model: a prompt, or a step that continues one."""
        if self._is_routing:
            return
        inputs = _named(self._edited.base_model, args) | kwargs
        is_first, self._has_begun = not self._has_begun, True
        self._layout = self._routing = None
        if _cached_tokens(inputs):
            if is_first:
                _refuse_cache_of_a_prompt(self._find_layout)
            return
        self._layout = self._find_layout(inputs)
        layer_of = self._edited._adapters.layer_of
        if "vision" in self._edited._adapters.modalities and layer_of["vision"] < layer_of["text"]:
            # The gate reads the unedited text layer, which lies above the first change.
            self._is_routing = True
            try:
                self._routing = self._edited._route_before(inputs, self._layout)
            finally:
                self._is_routing = False

    def edit(self, layer: int, hidden: Tensor) -> Tensor | None:
        """Return the changed output of a layer, or None where nothing changes."""
        layout = self._layout
        if layout is None or self._is_routing:
            return None
        edited = self._edited
        layer_of = edited._adapters.layer_of
        if self._routing is None:
            self._routing = edited._route(hidden, layout)
        index = self._routing.edit_index.to(hidden.device)
        rows = (index >= 0).nonzero()[:, 0]
        if not len(rows):
            return None
        changed = hidden
        for modality in edited._adapters.modalities:
            if layer_of[modality] != layer:
                continue
            positions = layout.text if modality == "text" else layout.vision
            projected = edited._memory.projected[modality]
            chosen = projected.select(index[rows].to(projected.keys.device))
            changed = add_at(changed, positions, edited._adapters[modality], chosen, rows)
        return None if changed is hidden else changed


def _named(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if args and not names:
        names = ["input_ids"]  # a wrapper that hides the parameters of the model in it
    return dict(zip(names, args, strict=False))


def _token_ids(inputs: dict[str, Any]) -> Tensor:
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptEndError(
            "an edited model needs input_ids, to tell image tokens from text; pass them, not"
            " inputs_embeds"
        )
    return ids


def _cached_tokens(inputs: dict[str, Any]) -> int:
    cache = inputs.get("past_key_values")
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


def _refuse_cache_of_a_prompt(find_layout: Any) -> None:
    if "columns" in find_layout.keywords:
        raise ChunkedPrefillError(
            "generate was given past_key_values of an earlier forward; an edit needs the whole"
            " prompt at once: leave past_key_values out"
        )
