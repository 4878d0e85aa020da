"""A model with edits applied: the unedited model, changed only while it is being called.

An `EditedCall` stands behind each call, and holds everything that it decides. So two edited models
on one base model, two threads, and calls that a streamer or a logits processor makes while an
edited model generates do not see each other.
"""

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from easyedit_dualedit.errors import BackboneError, ChunkedPrefillError, DataError, NotEditedError
from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal
from easyedit_dualedit.method.edit_check import EditCheck, checked
from easyedit_dualedit.method.edited_call import Decisions, EditedCall, LayoutFinder
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.method.surface import REFUSED_METHODS, REFUSED_OPTIONS
from easyedit_dualedit.model.calls import generate_of, real_tokens, token_ids
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query, TokenLayout


class EditedModel:
    """Behaves as the base model does, with edits applied to the queries that they concern.

    Calls and `generate` are edited; every other attribute is the base model's own, but for methods
    that would leave out the edits: they raise `NotEditedError`.
    """

    def __init__(self, encoder: Encoder, active: ActiveEdits):
        """Combine what an edited forward needs; the base model is not changed.

        Args:
            encoder: knows the base model and finds prompt ends.
            active: the edits, with their adapters and gate.
        """
        self.base_model: Any = encoder.backbone.model
        self._encoder = encoder
        self._active = active
        self._decisions: Decisions = weakref.WeakKeyDictionary()

    @property
    def edits(self) -> tuple[EditSignal | StoredEdit, ...]:
        """The edits applied, oldest first."""
        return self._active.edits

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
        call = self._call(partial(self._layout_of_call, given=layout))
        return call.run(self.base_model, self.base_model, args, inputs)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Return what a call returns; not the base model's own, unedited `forward`."""
        return self(*args, **inputs)

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """Return what the base model's `generate` returns, edited: the whole input is the prompt.

        Raises:
            ChunkedPrefillError: if the prompt is not processed in one forward.
            DataError: if there are no token ids.
            NotEditedError: if an option would leave out the edits.
            BackboneError: if it is not the model itself that generates.
        """
        if inputs is not None:
            options["inputs"] = inputs
        if not self.edits:
            return self.base_model.generate(**options)
        ids = options.get("input_ids") if inputs is None else inputs
        if not isinstance(ids, Tensor):
            raise DataError("generate needs input_ids, to tell image tokens from text; pass them")
        settings = options.get("generation_config") or getattr(
            self.base_model, "generation_config", None
        )
        for name, (inert, reason) in REFUSED_OPTIONS.items():
            if options.get(name, getattr(settings, name, None)) not in (None, inert):
                raise NotEditedError(f"{name}: {reason}")
        given = options.get("attention_mask")
        # Padding that no mask tells of may count as text: nothing attends to it.
        prompt = torch.ones_like(ids) if given is None else given
        find = partial(self._layout_of_prefill, columns=ids.shape[1], prompt=prompt)
        call = self._call(find, {**options, "input_ids": ids})
        made = generate_of(self.base_model, self._encoder.backbone.path[1:], call.run)(**options)
        if not call.has_begun:
            raise BackboneError(
                f"generate of {type(self.base_model).__name__} has called neither the model nor a"
                " part of it that generates, so nothing is edited; give the editor the"
                " transformers model itself, without a generate of another object put into it"
            )
        return made

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
        known = self._layout_of_call(inputs, given=layout)
        return self._active.decide_ahead(self._encoder.backbone, inputs, known)

    def check(self, requests: Sequence[Query] | None = None) -> list[EditCheck]:
        """Return whether each edit takes, and what the model answers to its request.

        Args:
            requests: of the edits, with targets; None if these edits were read and not stored.

        Raises:
            DataError: if a request is not known, or has no target.
        """
        return checked(self, self._encoder, requests)

    @classmethod
    def side_by_side(cls, models: Sequence[Self], rows: int) -> Self:
        """Return one model that answers for several, each in rows of its own.

        Args:
            models: edited models of one editor, each with a single edit.
            rows: rows of each model; those of the first come first.

        Raises:
            DataError: if a model holds another number of edits, or is of another editor.
        """
        for model in models:
            if len(model.edits) != 1:
                raise DataError(f"a model holds {len(model.edits)} edits; give models of one each")
        assignment = torch.arange(len(models)).repeat_interleave(rows)
        active = ActiveEdits.together([model._active for model in models], assignment)
        return cls(models[0]._encoder, active)

    def of_rows(self, rows: Sequence[int]) -> "EditedModel":
        """Return the model that answers some of the rows of a `side_by_side` one, as it does."""
        assignment = self._active.assignment
        if assignment is None:
            return self
        chosen = assignment[torch.tensor(list(rows), dtype=torch.long)]
        return EditedModel(self._encoder, dataclasses.replace(self._active, assignment=chosen))

    def watched(self) -> "tuple[EditedModel, list[Routing]]":
        """Return the same model, and a list to which it adds each decision of its gate."""
        decided: list[Routing] = []
        active = dataclasses.replace(self._active, watch=decided.append)
        return EditedModel(self._encoder, active), decided

    def with_gate(self, gate: Gate) -> "EditedModel":
        """Return the model with the same edits, as they were read, under another gate.

        Raises:
            DataError: if edits are stored: of them only their gate's own keys are known.
        """
        return EditedModel(self._encoder, self._active.with_gate(gate))

    @property
    def edit_gate(self) -> Gate:
        """The gate that decides."""
        return self._active.gate

    @property
    def gate_layer(self) -> int:
        """The layer whose states the gate reads."""
        return self._active.gate_layer

    def decide(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, from unedited states of `gate_layer`, [b, s, d].

        Raises:
            CalibrationError: if the gate has no threshold.
        """
        return self._active.decide(hidden, layout)

    def __getattr__(self, name: str) -> Any:
        """Return the base model's attribute; methods that return the model return this one."""
        if name.startswith("__") or name == "base_model":
            raise AttributeError(name)
        value = getattr(self.base_model, name)
        if name in REFUSED_METHODS and self.edits:
            return functools.partial(_refuse, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self if result is self.base_model else result

        return method

    def _call(
        self, find_layout: LayoutFinder, prompt: Mapping[str, Any] | None = None
    ) -> EditedCall:
        return EditedCall(
            self._encoder.backbone, self._active, find_layout, self._decisions, prompt
        )

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
            start = mask.bool().to(torch.uint8).argmax(1)
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
        positions = torch.arange(columns, device=ids.device)
        end = torch.where(mask[:, :columns].bool(), positions, -1).amax(1)
        return dataclasses.replace(self._encoder.layout(ids, mask, gate=end), last=end)


def _refuse(name: str, *_args: Any, **_kwargs: Any) -> None:
    raise NotEditedError(f"{name} of an edited model: {REFUSED_METHODS[name]}")
