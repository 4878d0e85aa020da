"""Edits with all that decides where they apply, and how: what one forward after another shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.adapter import DualAdapters, FoldedEdit, add_at, add_folded
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.gate import Gate, Routing
from easyedit_dualedit.method.router import OpenRows, Router
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import TokenLayout

_NOT_FOR_ROUTING = ("past_key_values", "use_cache", "labels", "logits_to_keep", "cache_position")


@dataclass(frozen=True)
class AppliedEdits:
    """The edits of one edited model."""

    backbone: Backbone
    adapters: DualAdapters
    gate: Gate
    memory: ActiveEdits
    assignment: Tensor | None = None
    """The only edit that each row may use, long [b]; None allows all."""

    @cached_property
    def gate_layer(self) -> int:
        """The layer whose states the gate reads."""
        return self.adapters.layer_of["text"]

    @cached_property
    def modalities_of(self) -> dict[int, tuple[Modality, ...]]:
        """Layer that is changed -> modalities that are changed there, text first."""
        found: dict[int, tuple[Modality, ...]] = {}
        for modality in self.adapters.modalities:
            layer = self.adapters.layer_of[modality]
            found[layer] = (*found.get(layer, ()), modality)
        return found

    @cached_property
    def routes_first(self) -> bool:
        """Whether the gate reads the unedited states of a layer above the first change."""
        return min(self.modalities_of) < self.gate_layer

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

    def changed(
        self, layer: int, hidden: Tensor, layout: TokenLayout, concerned: OpenRows
    ) -> Tensor:
        """Return the output of a layer, [b, s, d], changed by the edits of the open rows."""
        for modality in self.modalities_of.get(layer, ()):
            positions = layout.text if modality == "text" else layout.vision
            folded = self._folded(modality, concerned.edits)
            if folded is not None:
                hidden = add_folded(hidden, positions, folded, concerned.rows)
                continue
            projected = self.memory.projected[modality]
            index = torch.tensor(concerned.edits, device=projected.device)
            edit = projected.select(index)
            hidden = add_at(hidden, positions, self.adapters[modality], edit, concerned.rows)
        return hidden

    def _folded(self, modality: Modality, numbers: Sequence[int]) -> FoldedEdit | None:
        """Return the edit of all rows folded into its adapter; None where that does not serve."""
        number = numbers[0]
        if torch.is_grad_enabled() or numbers.count(number) < len(numbers):
            return None
        return self._folds.get(modality, number)

    @cached_property
    def _folds(self) -> "_Folds":
        return _Folds(self.adapters, self.memory)

    @cached_property
    def _router(self) -> Router:
        return Router(self.gate, self.memory.keys, self.assignment)

    def route_before(self, inputs: Mapping[str, Any], layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, by an unedited forward that ends early."""
        plain = {key: value for key, value in inputs.items() if key not in _NOT_FOR_ROUTING}
        mask = plain.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            # Made for the cache that is left out.
            plain["attention_mask"] = layout.real.long()
        layer = self.gate_layer
        with torch.no_grad(), record(self.backbone.layers, [layer], stop=True) as states:
            self.backbone.model(**plain, use_cache=False)
        return self.route(states[layer], layout)


class _Folds:
    """Edits folded into their adapters; those used last are kept until the adapter changes."""

    _MOST = 16

    def __init__(self, adapters: DualAdapters, memory: ActiveEdits):
        """Fold nothing yet."""
        self._adapters = adapters
        self._memory = memory
        self._held: dict[tuple[Modality, int], tuple[FoldedEdit, list[int]]] = {}
        self._weights = {name: adapters[name].weights_to_fold for name in adapters.modalities}

    def get(self, modality: Modality, number: int) -> FoldedEdit | None:
        """Return an edit folded into the adapter as it is now; None where that does not pay."""
        held = self._held.get((modality, number))
        weights = self._weights[modality]
        if held is not None and held[1] == [weight._version for weight in weights]:
            return held[0]
        if any(weight.is_inference() for weight in weights):  # nothing tells when they change
            return None
        adapter, projected = self._adapters[modality], self._memory.projected[modality]
        one = projected.select(torch.tensor([number], device=projected.device))
        if not adapter.pays_to_fold(one):
            return None
        folded = adapter.fold(one)
        while len(self._held) >= self._MOST:
            self._held.pop(next(iter(self._held)), None)
        self._held[modality, number] = folded, [weight._version for weight in weights]
        return folded
