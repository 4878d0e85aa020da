"""Thresholds of a gate, chosen on training data: where similarity is enough for an edit to apply.

What is found is stored in the gate. Deciding with it is in `gate`, and the thresholds of a
`learned` gate, which grow with the number of edits, are found where it is trained.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GateConfig, GateKind
from easyedit_dualedit.method.gate import CALIBRATED_KINDS, Gate


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


@torch.no_grad()
def set_thresholds(gate: Gate, sample: ScopeSample) -> dict[GateKind, Calibration]:
    """Store the mean and the thresholds in a gate; return how each kind does on the sample.

    A threshold has the highest balanced accuracy, half-way between the two similarities that it
    separates.

    Raises:
        CalibrationError: if no pair is in scope, or none out of it, or a state is not finite.
    """
    for name, mask in (("in", sample.in_scope), ("out of", ~sample.in_scope)):
        if not bool(mask.any()):
            raise CalibrationError(f"no queries {name} scope to calibrate the gate on")
    states = (sample.query_gate, sample.edit_gate, sample.query_last, sample.edit_last)
    if not all(bool(state.isfinite().all()) for state in states):
        raise CalibrationError("states to calibrate the gate on hold NaN or infinity")
    gate.mean.copy_(torch.cat(states[:2]).to(gate.mean).mean(0))
    calibrations = {}
    for place, kind in enumerate(CALIBRATED_KINDS):
        query, edit = states[2:] if kind == "last-token" else states[:2]
        one = gate.with_config(GateConfig(kind=kind))
        similarity = (one.key(query) * one.key(edit)).sum(-1)
        inside, outside = similarity[sample.in_scope], similarity[~sample.in_scope]
        threshold = best_threshold(inside, outside)
        gate.thresholds[place] = threshold
        calibrations[kind] = Calibration(
            threshold,
            float((inside >= threshold).float().mean()),
            float((outside >= threshold).float().mean()),
        )
    return calibrations


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
