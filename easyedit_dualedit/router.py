"""A gate in front of the edits that one model applies: it reads a forward's states and decides."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from easyedit_dualedit.batch import TokenLayout
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.gate import Gate, Routing, best_edits
from easyedit_dualedit.projection import vision_mean


class Router:
    """Decides which of some edits concerns each row of a forward.

    What does not change between forwards is read once, when the first of them is decided.
    """

    def __init__(self, gate: Gate, keys: Tensor, assignment: Tensor | None = None):
        """Put a gate in front of edits.

        Args:
            gate: compares queries with edits.
            keys: keys of the edits, [n, k], oldest first.
            assignment: the only edit that each row may use, long [b]; None allows all.
        """
        self._gate = gate
        self._keys = keys
        self._assignment = assignment

    def route(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, from the text layer's states [b, s, d].

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        index = layout.last if self._gate.config.reads_label else layout.gate
        if (
            len(hidden) == 1
            and self._is_swift
            and not torch.is_autocast_enabled(hidden.device.type)
        ):
            return self._route_one(hidden, int(index), layout.vision)
        index = index.to(hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)
        pictures = vision_mean(hidden, layout.vision) if self._gate.reads_vision else None
        return self._gate.route(
            hidden[rows, index], self._keys, self._assignment_of(len(hidden)), pictures
        )

    def _route_one(self, hidden: Tensor, index: int, vision: Tensor) -> Routing:
        """Decide for a single row among all edits, the common case of a chat, and the quickest."""
        state = hidden[0, index].to(self._keys)
        reads_vision = self._reads_vision
        picture = vision_mean(hidden, vision)[0].to(self._keys) if reads_vision else state
        key = self._key(state, picture)
        similarity = torch.mv(self._keys, key)[None]
        routing = best_edits(similarity, self._threshold)
        if self._keys.device == hidden.device:
            return routing
        return Routing(routing.similarity.to(hidden.device), routing.edit_index.to(hidden.device))

    @cached_property
    def _is_swift(self) -> bool:
        mean, keys = self._gate.mean, self._keys
        alike = (mean.device, mean.dtype) == (keys.device, keys.dtype)
        return self._assignment is None and len(keys) > 0 and alike

    @cached_property
    def _reads_vision(self) -> bool:
        return self._gate.reads_vision

    @cached_property
    def _key(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self._gate.bound_key()

    @cached_property
    def _threshold(self) -> float:
        return self._gate.threshold_among(len(self._keys))

    def _assignment_of(self, rows: int) -> Tensor | None:
        assignment = self._assignment
        if assignment is None or len(assignment) == rows:
            return assignment
        if rows % len(assignment):
            raise DataError(
                f"{rows} rows for edits assigned to {len(assignment)}; give as many rows as the"
                " assignment, or a multiple that repeats each"
            )
        # Beam search and sampling repeat each row of the batch in place.
        return assignment.repeat_interleave(rows // len(assignment))
