"""The gate: how similar a query is to an edit, and whether that is similar enough.

It reads the last prompt token at the text layer on both sides and, if it is `learned`, the image
tokens there, so no label can reach it. The one kind that reads the last token of prompt and target,
`last-token`, is the published code's and is here to reproduce it.
"""

import copy
import logging
import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GateConfig, GateKind
from easyedit_dualedit.method.gate_projection import GateProjection

logger = logging.getLogger(__name__)

CALIBRATED_KINDS: tuple[GateKind, ...] = ("cosine", "centred", "last-token")
"""Kinds that compare the states as they are, in the order in which a gate stores thresholds."""

TIE = 1e-5
"""Cosines closer than this differ by rounding: two edits of one request, say."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and how well it separates the data that it was chosen on."""

    threshold: float
    """Cosine at or above which the gate opens."""
    true_open_rate: float
    """Share of queries in scope that open it, 0 to 1."""
    false_open_rate: float
    """Share of queries out of scope that open it, 0 to 1."""


@dataclass(frozen=True)
class Routing:
    """Which edit applies to each row of one forward.

    Shapes: b rows.
    """

    similarity: Tensor
    """Similarity to the best edit, float [b]; -inf without edits."""
    edit_index: Tensor
    """Index of the edit that applies, long [b]; -1 where none does."""

    @property
    def is_open(self) -> Tensor:
        """True where an edit applies, bool [b]."""
        return self.edit_index >= 0


def closed(similarity: Tensor) -> Routing:
    """Return a decision for no edit in any row, of the given similarities, [b]."""
    return Routing(similarity, torch.full((len(similarity),), -1, device=similarity.device))


def best_edits(similarity: Tensor, threshold: float, assignment: Tensor | None = None) -> Routing:
    """Return the best edit of each row, where it reaches the threshold; the newest wins a tie.

    Args:
        similarity: of queries and edits, oldest first, [b, n].
        threshold: similarity at or above which an edit applies.
        assignment: the only edit that each query may use, long [b]; None allows all.
    """
    if assignment is None:
        best = similarity.amax(1)
        # Plain numbers: among ten thousand edits there is no need to look which, if it is none.
        values = best.tolist()
        if all(value < threshold for value in values):
            return closed(best)
        if similarity.shape[1] == 1 and all(map(math.isfinite, values)):
            return Routing(best, (best >= threshold).long() - 1)
        # An edit whose state is not a number concerns no query; it would be the best, though.
        similarity = similarity.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        best = similarity.amax(1)
        # The newest of equals: with the last edit first, arg-max finds the first of them.
        is_best = (similarity >= best[:, None] - TIE).flip(1)
        index = similarity.shape[1] - 1 - is_best.view(torch.uint8).argmax(1)
    else:
        index = assignment.to(similarity.device)
        best = similarity.gather(1, index[:, None])[:, 0]
        best = best.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    is_open = (best >= threshold) & (best > -math.inf)
    return Routing(best, torch.where(is_open, index, -1))


@dataclass(frozen=True)
class ScopeSample:
    """States of queries and of the edits that each was tried against, to calibrate a gate on.

    Shapes: n pairs, d hidden size; all states are those of the text layer.
    """

    query_gate: Tensor
    """The queries' last prompt tokens, [n, d]."""
    query_last: Tensor
    """The queries' last tokens, label included, [n, d]."""
    edit_gate: Tensor
    """The edits' last prompt tokens, [n, d]."""
    edit_last: Tensor
    """The edits' last target tokens, [n, d]."""
    in_scope: Tensor
    """True where the edit should apply to the query, bool [n]."""


class Gate(nn.Module):
    """Compares states of queries with states of edits; holds what calibration found.

    One calibration serves every kind, so that a trained editor can be used with any of them.
    """

    mean: Tensor
    thresholds: Tensor

    def __init__(self, hidden_size: int, config: GateConfig):
        """Build a gate over states of `hidden_size`, not calibrated yet."""
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("thresholds", torch.full((len(CALIBRATED_KINDS),), float("nan")))
        self.projection = GateProjection(hidden_size)
        self.register_load_state_dict_pre_hook(_leave_out_earlier_projection)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_warn_of_fallback)  # type: ignore[no-untyped-call]

    @property
    def kind(self) -> GateKind:
        """The kind that decides: `cosine` in place of a `learned` gate that is not trained."""
        if self.config.kind == "learned" and not self.projection.is_trained:
            return "cosine"
        return self.config.kind

    @property
    def threshold(self) -> float:
        """Cosine at or above which the gate opens for a single edit.

        Raises:
            CalibrationError: if there is none yet.
        """
        return self.threshold_among(1)

    @property
    def reads_vision(self) -> bool:
        """True if the means of the image tokens take part in its keys."""
        return self.kind == "learned"

    def threshold_among(self, count: int) -> float:
        """Return the cosine at or above which the gate opens for the best of `count` edits.

        A `learned` gate is stricter the more edits there are; one that was set is always the same.

        Raises:
            CalibrationError: if there is none yet.
        """
        if self.kind == "open":
            return -math.inf
        if self.config.threshold is not None:
            return self.config.threshold
        if self.kind == "learned":
            return self.projection.threshold(count)
        value = float(self.thresholds[CALIBRATED_KINDS.index(self.kind)])
        if math.isnan(value):
            raise CalibrationError(
                f"the {self.config.kind} gate has no threshold: train it, load adapters that hold"
                " one, or set gate.threshold in the configuration"
            )
        return value

    def with_config(self, config: GateConfig) -> "Gate":
        """Return a gate of another kind or threshold that shares what this one has learned."""
        gate = copy.copy(self)
        gate.config = config
        return gate

    def key(self, states: Tensor, vision: Tensor | None = None) -> Tensor:
        """Return unit vectors, float32 [..., k], whose products are similarities.

        Args:
            states: states of gate tokens at the text layer, [..., d].
            vision: means of the image tokens there, [..., d]; zeros, or None, without a picture.
                Only a `learned` gate reads them.
        """
        kind = self.kind
        with _full_precision(self.mean.device.type):
            if kind == "learned":
                picture = None if vision is None else vision.to(self.mean)
                keys: Tensor = self.projection(states.to(self.mean), picture).float()
                return keys
            states = states.to(self.mean.device, torch.float32)
            if kind == "centred":
                states = states - self.mean.float()
            return functional.normalize(states, dim=-1)

    def route(
        self,
        queries: Tensor,
        edits: Tensor,
        assignment: Tensor | None = None,
        vision: Tensor | None = None,
    ) -> Routing:
        """Return which edit applies to each query.

        The best edit applies if its similarity reaches the threshold among so many; the newest wins
        a tie.

        Args:
            queries: states of the queries' gate tokens, [b, d].
            edits: keys of the edits, [n, k], oldest first.
            vision: means of the queries' image tokens, [b, d], as in `key`.
            assignment: the only edit that each query may use, long [b]; None allows all.

        Raises:
            CalibrationError: if the gate has no threshold yet.
        """
        if len(edits) == 0:
            return closed(queries.new_full((len(queries),), -math.inf, dtype=torch.float32))
        with _full_precision(edits.device.type):
            similarity = self.key(queries, vision) @ edits.T  # [b, n]
        # A query that may use one edit only is not tempted by the others.
        threshold = self.threshold_among(len(edits) if assignment is None else 1)
        routing = best_edits(similarity, threshold, assignment)
        return Routing(routing.similarity.to(queries.device), routing.edit_index.to(queries.device))

    @torch.no_grad()
    def calibrate(self, sample: ScopeSample) -> dict[GateKind, Calibration]:
        """Choose the mean and the thresholds on training data; return how each kind does on it.

        A threshold has the highest balanced accuracy, half-way between the two similarities that
        it separates.

        Raises:
            CalibrationError: if no pair is in scope, or none out of it, or a state is not finite.
        """
        for name, mask in (("in", sample.in_scope), ("out of", ~sample.in_scope)):
            if not bool(mask.any()):
                raise CalibrationError(f"no queries {name} scope to calibrate the gate on")
        states = (sample.query_gate, sample.edit_gate, sample.query_last, sample.edit_last)
        if not all(bool(state.isfinite().all()) for state in states):
            raise CalibrationError("states to calibrate the gate on hold NaN or infinity")
        self.mean.copy_(torch.cat(states[:2]).to(self.mean).mean(0))
        found = {}
        for place, kind in enumerate(CALIBRATED_KINDS):
            query, edit = states[2:] if kind == "last-token" else states[:2]
            gate = self.with_config(GateConfig(kind=kind))
            similarity = (gate.key(query) * gate.key(edit)).sum(-1)
            inside, outside = similarity[sample.in_scope], similarity[~sample.in_scope]
            threshold = best_threshold(inside, outside)
            self.thresholds[place] = threshold
            found[kind] = Calibration(
                threshold,
                float((inside >= threshold).float().mean()),
                float((outside >= threshold).float().mean()),
            )
        return found


def _full_precision(device: str) -> AbstractContextManager[Any]:
    # Entering autocast costs as much as a matrix product of a small gate.
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _leave_out_earlier_projection(
    _gate: nn.Module, tensors: dict[str, Tensor], prefix: str, *_rest: object
) -> None:
    """Drop a projection of version 0.1, which read no image tokens: it cannot be used any more."""
    if f"{prefix}projection.threshold" in tensors:
        fresh = GateProjection(len(tensors[f"{prefix}mean"])).state_dict()
        for name in [name for name in tensors if name.startswith(f"{prefix}projection.")]:
            del tensors[name]
        tensors.update({f"{prefix}projection.{name}": value for name, value in fresh.items()})


def _warn_of_fallback(gate: nn.Module, _keys: object) -> None:
    if isinstance(gate, Gate) and gate.kind != gate.config.kind:
        logger.warning(
            "the weights hold no trained %s gate; the %s gate decides instead",
            gate.config.kind,
            gate.kind,
        )


def best_threshold(inside: Tensor, outside: Tensor) -> float:
    """Return the threshold with the highest balanced accuracy.

    Args:
        inside: similarities that should open the gate, [n].
        outside: similarities that should not, [m].
    """
    inside, outside = inside.double().sort().values, outside.double().sort().values
    values = torch.cat([inside, outside]).sort().values
    candidates = torch.cat([values[:1], (values[1:] + values[:-1]) / 2])
    accepted = 1.0 - torch.searchsorted(inside, candidates).double() / len(inside)
    refused = torch.searchsorted(outside, candidates).double() / len(outside)
    return float(candidates[(accepted + refused).argmax()])
