"""A gate in front of the edits that one model applies: it reads a forward's states and decides."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.gate import TIE, Gate, Routing, best_edits
from easyedit_dualedit.method.gate_projection import vision_mean
from easyedit_dualedit.method.shortlist import Shortlist, newest_of_best
from easyedit_dualedit.model.inputs import TokenLayout


@dataclass(frozen=True)
class OpenRows:
    """The rows of a forward that edits concern."""

    rows: tuple[int, ...]
    """Their indices."""
    edits: tuple[int, ...]
    """Index of the edit of each."""

    @classmethod
    def of(cls, routing: Routing) -> "OpenRows":
        """Return the open rows of a decision."""
        numbers = routing.edit_index.tolist()
        rows = tuple(row for row, number in enumerate(numbers) if number >= 0)
        return cls(rows, tuple(numbers[row] for row in rows))


_NONE = OpenRows((), ())


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
        self._means_of: dict[int, Tensor] = {}

    def route(self, hidden: Tensor, layout: TokenLayout) -> Routing:
        """Return which edit applies to each row, from the text layer's states [b, s, d].

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        index = self._places(layout).to(hidden.device)
        rows = torch.arange(len(hidden), device=hidden.device)
        pictures = vision_mean(hidden, layout.vision) if self._gate.reads_vision else None
        return self._gate.route(
            hidden[rows, index], self._keys, self._assignment_of(len(hidden)), pictures
        )

    def open_rows(self, hidden: Tensor, layout: TokenLayout) -> OpenRows:
        """Return the rows that edits concern, and their edits: the decisions of `route`.

        On a processor fewer operations decide; a single row, the common case of a chat, among many
        edits without looking at all of them.

        Raises:
            DataError: if the rows do not fit the assignment.
            CalibrationError: if the gate has no threshold.
        """
        is_near = hidden.is_cpu and layout.gate.is_cpu
        if self._is_swift and is_near and not torch.is_autocast_enabled("cpu"):
            states = hidden.detach() if hidden.requires_grad else hidden
            if states.shape[0] == 1:
                edit = self._edit_of_row(states, layout)
                return _NONE if edit < 0 else OpenRows((0,), (edit,))
            if not self._reads_vision:
                return self._edits_of_rows(states, layout)
        return OpenRows.of(self.route(hidden, layout))

    def _edit_of_row(self, hidden: Tensor, layout: TokenLayout) -> int:
        """Return the index of the edit that concerns a row, -1 for none; states [1, s, d]."""
        if self._reads_vision:
            pictured = layout.vision.numpy()[0].nonzero()[0]
            places = np.empty(len(pictured) + 1, np.int64)
            places[:-1], places[-1] = pictured, layout.gate.item()
            states = hidden[0].index_select(0, torch.from_numpy(places)).float()
            key = self._key(torch.mm(self._means(len(places)), states))
        else:
            key = self._compared(hidden[0, self._places(layout).item()])  # type: ignore[index]
        length = math.sqrt(key.dot(key).item())
        if not 0 < length < math.inf:  # of no direction, or not a number
            return -1
        # Compared with what the product of a key as long as this one must reach.
        least = self._threshold * length
        if self._only is not None:
            return 0 if self._only.dot(key).item() >= least else -1
        tie = TIE * length
        shortlist = self._shortlist
        chosen = None if shortlist is None else shortlist.best(key.numpy(), length, least, tie)
        if chosen is None:
            chosen = newest_of_best(torch.mv(self._vectors, key).numpy(), least, tie)
        return chosen

    def _edits_of_rows(self, hidden: Tensor, layout: TokenLayout) -> OpenRows:
        """Return the open rows of states [b, s, d], if the gate reads no vision."""
        starts = torch.arange(0, hidden.shape[0] * hidden.shape[1], hidden.shape[1])
        states = functional.embedding(starts + self._places(layout), hidden.flatten(0, 1))
        keys = self._compared(states)
        squares, products = keys.pow(2).sum(1), functional.linear(keys, self._vectors)
        if self._only is None:
            return OpenRows.of(best_edits(products / squares.sqrt()[:, None], self._threshold))
        pairs = zip(products[:, 0].tolist(), squares.tolist(), strict=True)
        rows = tuple(
            row
            for row, (product, square) in enumerate(pairs)
            if 0 < square < math.inf and product >= self._threshold * math.sqrt(square)
        )
        return OpenRows(rows, (0,) * len(rows))

    def _places(self, layout: TokenLayout) -> Tensor:
        return layout.last if self._reads_label else layout.gate

    def _compared(self, states: Tensor) -> Tensor:
        """Return what a gate that reads no vision compares with keys, of any length."""
        # Of the operations that would do, those that a model runs as well are quickest to begin.
        states = states.float()
        return states if self._mean is None else states - self._mean

    def _means(self, count: int) -> Tensor:
        """Return what makes the last of some states, and the mean of the others, [2, count]."""
        found = self._means_of.get(count)
        if found is None:
            found = torch.zeros(2, count)
            found[0, -1] = 1
            found[1, :-1] = 1 / max(1, count - 1)
            self._means_of[count] = found
        return found

    @cached_property
    def _is_swift(self) -> bool:
        mean, keys = self._gate.mean, self._keys
        is_plain = all((each.device.type, each.dtype) == _PLAIN for each in (mean, keys))
        return self._assignment is None and len(keys) > 0 and is_plain

    @cached_property
    def _vectors(self) -> Tensor:
        return self._keys.detach()

    @cached_property
    def _only(self) -> Tensor | None:
        keys = self._vectors
        return keys[0] if len(keys) == 1 and bool(keys.isfinite().all()) else None

    @cached_property
    def _shortlist(self) -> Shortlist | None:
        return Shortlist.of(self._vectors)

    @cached_property
    def _reads_label(self) -> bool:
        return self._gate.config.reads_label

    @cached_property
    def _reads_vision(self) -> bool:
        return self._gate.reads_vision

    @cached_property
    def _key(self) -> Callable[[Tensor], Tensor]:
        return self._gate.projection.bound()

    @cached_property
    def _mean(self) -> Tensor | None:
        return self._gate.mean.detach() if self._gate.kind == "centred" else None

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


_PLAIN = ("cpu", torch.float32)
