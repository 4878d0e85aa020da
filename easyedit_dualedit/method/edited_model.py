"""A model with edits applied: the unedited model, changed only while it is being called."""

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from easyedit_dualedit.errors import ChunkedPrefillError, DataError
from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal
from easyedit_dualedit.method.adapter import DualAdapters
from easyedit_dualedit.method.applied import AppliedEdits
from easyedit_dualedit.method.forward import Forward, LayoutFinder
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, TokenLayout, real_tokens, token_ids


class EditedModel:
    """Behaves as the base model does, with edits applied to the queries that they concern.

    Calls and `generate` are edited; every other attribute is the base model's own.
    """

    def __init__(
        self,
        encoder: Encoder,
        adapters: DualAdapters,
        gate: Gate,
        memory: ActiveEdits,
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
        self._applied = AppliedEdits(encoder.backbone, adapters, gate, memory, assignment)

    @property
    def edits(self) -> tuple[EditSignal | StoredEdit, ...]:
        """The edits applied, oldest first."""
        return self._applied.memory.edits

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
        if not self.edits:
            return self.base_model(*args, **inputs)
        with Forward(self._applied, partial(self._layout_of_call, given=layout)) as forward:
            forward.begin(args, inputs)
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
        settings = options.get("generation_config")
        if options.get("prefill_chunk_size") or getattr(settings, "prefill_chunk_size", None):
            raise ChunkedPrefillError(
                "prefill_chunk_size splits the prompt over several forwards; an edit needs the"
                " whole prompt at once: leave it out"
            )
        given = options.get("attention_mask")
        # Padding that no mask tells of may count as text: nothing attends to it.
        prompt = torch.ones_like(ids) if given is None else given
        find = partial(self._layout_of_prefill, columns=ids.shape[1], prompt=prompt)
        with self._generating(find, {**options, "input_ids": ids}):
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
        return self._applied.route_before(inputs, found)

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
            if len(model.edits) != 1:
                raise DataError(f"a model holds {len(model.edits)} edits; give models of one each")
            own, other = model._applied, first._applied
            if own.adapters is not other.adapters or own.gate is not other.gate:
                raise DataError("the models have different editors; give models of one editor")
        adapters, gate = first._applied.adapters, first._applied.gate
        memory = ActiveEdits.together([model._applied.memory for model in models], adapters, gate)
        assignment = torch.arange(len(models)).repeat_interleave(rows)
        return cls(first._encoder, adapters, gate, memory, assignment=assignment)

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
    def _generating(self, find_layout: LayoutFinder, prompt: Mapping[str, Any]) -> Iterator[None]:
        """Apply the edits to all forwards inside the block, which `generate` makes."""
        if not self.edits:
            yield
            return
        with Forward(self._applied, find_layout, prompt) as forward:
            forward.listen()
            yield

    def _layout_of_call(self, inputs: dict[str, Any], given: TokenLayout | None) -> TokenLayout:
        if given is not None:
            # Whoever made it may count the last prompt token, which this editor leaves out.
            return given if self._encoder.last_prompt_token else given.without_prompt_end()
        ids, mask = token_ids(inputs), real_tokens(inputs)
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

    def _layout_of_prefill(
        self, inputs: dict[str, Any], columns: int, prompt: Tensor
    ) -> TokenLayout:
        ids, mask = token_ids(inputs), real_tokens(inputs, prompt)
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
