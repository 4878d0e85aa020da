"""A model with edits applied: the unedited model, changed only while it is being called.

An `EditedCall` stands behind each call, and holds everything that it decides. So two edited models
on one base model, two threads, and calls that a streamer or a logits processor makes while an
edited model generates do not see each other: `generate` runs on a stand-in, which shares all that
the base model is and has. A call of the stand-in is one of generate's own, a call of the model is
somebody else's.
"""

import copy
import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, DataError, NotEditedError
from easyedit_dualedit.method.active_edits import ActiveEdits, Decisions, EditSignal
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edit_check import EditCheck, checked
from easyedit_dualedit.method.edited_call import (
    EditedCall,
    LayoutFinder,
    layout_of_call,
    layout_of_prefill,
)
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.method.surface import REFUSED_METHODS, REFUSED_OPTIONS
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query, TokenLayout

OwnForward = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Runs a forward that `generate` makes, and returns its output.

Takes the module that is called, what to call (the module, or code compiled from it), and the
positional and keyword arguments.
"""


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

        Raises:
            DataError: if rows are assigned to edits that there are not.
        """
        _require_edits(active.assignment, len(active.edits))
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
        call = self._call(partial(layout_of_call, encoder=self._encoder, given=layout))
        return call.run(self.base_model, self.base_model, args, inputs)

    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Return what a call returns; not the base model's own, unedited `forward`."""
        return self(*args, **inputs)

    def generate(
        self, inputs: Tensor | None = None, generation_config: Any = None, **options: Any
    ) -> Any:
        """Return what the base model's `generate` returns, edited: the whole input is the prompt.

        Raises:
            ChunkedPrefillError: if the prompt is not processed in one forward.
            DataError: if there are no token ids.
            NotEditedError: if an option would leave out the edits.
            BackboneError: if it is not the model itself that generates.
        """
        first = "inputs"
        # BLIP-2's own takes pixels first.
        if isinstance(inputs, Tensor) and inputs.is_floating_point():
            (first, *_) = inspect.signature(self.base_model.generate).parameters
        given = {first: inputs, "generation_config": generation_config}
        options |= {name: value for name, value in given.items() if value is not None}
        own = vars(self).get("generation_config")  # one that was assigned: the base keeps its own
        if own is not None and options.get("generation_config") is None:
            options["generation_config"] = own
        if not self.edits:
            return self.base_model.generate(**options)
        ids = options.get("inputs", options.get("input_ids"))
        if not isinstance(ids, Tensor):
            raise DataError("generate needs input_ids, to tell image tokens from text; pass them")
        settings = options.get("generation_config") or getattr(
            self.base_model, "generation_config", None
        )
        for name, (inert, reason) in REFUSED_OPTIONS.items():
            if options.get(name, getattr(settings, name, None)) not in (None, inert):
                raise NotEditedError(f"{name}: {reason}")
        mask = options.get("attention_mask")
        # Padding that no mask tells of may count as text: nothing attends to it.
        prompt = torch.ones_like(ids) if mask is None else mask
        find = partial(
            layout_of_prefill, encoder=self._encoder, columns=ids.shape[1], prompt=prompt
        )
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
        known = layout_of_call(inputs, self._encoder, given=layout)
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

    def with_gate(self, gate: Gate | GateConfig) -> "EditedModel":
        """Return the model with the same edits, as they were read, under another gate.

        Raises:
            ConfigError: if `gate` describes none.
            DataError: if edits are stored: of them only their gate's own keys are known.
        """
        chosen = self._active.gate.with_config(gate)
        return EditedModel(self._encoder, self._active.with_gate(chosen))

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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with a base model and adapters of its own, to which no gradient leads."""
        for made in self._active.projected.values():
            for part in (getattr(made, "keys", None), getattr(made, "values", None)):
                if isinstance(part, Tensor) and part.grad_fn is not None:
                    memo[id(part)] = part.detach().clone()
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def _call(
        self, find_layout: LayoutFinder, prompt: Mapping[str, Any] | None = None
    ) -> EditedCall:
        return EditedCall(
            self._encoder.backbone, self._active, find_layout, self._decisions, prompt
        )


def _refuse(name: str, *_args: Any, **_kwargs: Any) -> None:
    raise NotEditedError(f"{name} of an edited model: {REFUSED_METHODS[name]}")


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


def _require_edits(assignment: Tensor | None, count: int) -> None:
    if assignment is None or not len(assignment) or not count:
        return
    low, high = (int(each) for each in assignment.aminmax())
    if low < 0 or high >= count:
        raise DataError(
            f"rows are assigned to edits {low} to {high}, and there are {count}: give 0 to"
            f" {count - 1}"
        )
