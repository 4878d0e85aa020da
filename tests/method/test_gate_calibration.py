"""Calibration finds the thresholds that separate best, and tells what routing then does."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GATE_KINDS, GateConfig
from easyedit_dualedit.method.gate import CALIBRATED_KINDS, Gate
from easyedit_dualedit.method.gate_calibration import (
    ScopeSample,
    best_threshold,
    set_thresholds,
)

HIDDEN = 4
NAN = float("nan")


def gate_of(kind: Any = "cosine", threshold: float | None = None) -> Gate:
    return Gate(HIDDEN, GateConfig(kind, threshold))


def brute_force(inside: Tensor, outside: Tensor) -> float:
    """Return the highest sum of both shares over every way to split the values."""
    values = sorted({*inside.tolist(), *outside.tolist()})
    best = 0.0
    for threshold in [*values, values[-1] + 1]:
        accepted = sum(value >= threshold for value in inside.tolist()) / len(inside)
        refused = sum(value < threshold for value in outside.tolist()) / len(outside)
        best = max(best, accepted + refused)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_the_best_threshold_is_as_good_as_a_search(seed: int):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 12, (2,), generator=generator).tolist()
    inside = torch.randn(sizes[0], generator=generator) + 0.7
    outside = torch.randn(sizes[1], generator=generator)
    if seed % 2:  # with ties
        inside, outside = inside.round(), outside.round()
    threshold = best_threshold(inside, outside)
    reached = (inside >= threshold).double().mean() + (outside < threshold).double().mean()
    assert float(reached) == pytest.approx(brute_force(inside, outside))


def test_the_best_threshold_is_half_way_and_ignores_order():
    inside, outside = torch.tensor([0.9, 0.7, 0.8]), torch.tensor([0.5, -0.2, 0.1])
    assert best_threshold(inside, outside) == pytest.approx(0.6)
    assert best_threshold(torch.tensor([1.0]), torch.tensor([0.0])) == 0.5
    assert best_threshold(torch.tensor([0.3]), torch.tensor([0.3])) == pytest.approx(0.3)


def sample_of(seed: int = 0, *, anisotropic: bool = True, pairs: int = 40) -> ScopeSample:
    """Make pairs of which the even ones are in scope: the query is near its edit."""
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float) -> Tensor:
        return torch.randn(pairs, HIDDEN, generator=generator) * scale

    offset = torch.tensor([30.0, 0, 0, 0]) if anisotropic else torch.zeros(HIDDEN)
    in_scope = torch.arange(pairs) % 2 == 0
    edit_gate, edit_last = noise(1.0), noise(1.0)
    query_gate = torch.where(in_scope[:, None], edit_gate + noise(0.1), noise(1.0))
    query_last = torch.where(in_scope[:, None], edit_last + noise(0.5), noise(1.0))
    return ScopeSample(
        query_gate + offset, query_last + offset, edit_gate + offset, edit_last + offset, in_scope
    )


@pytest.mark.parametrize("kind", CALIBRATED_KINDS)
def test_calibration_reports_what_routing_then_does(kind: Any):
    sample = sample_of()
    gate = gate_of(kind)
    found = set_thresholds(gate, sample)
    assert tuple(found) == CALIBRATED_KINDS
    assert gate.threshold == pytest.approx(found[kind].threshold, abs=1e-6)
    queries, edits = sample.query_gate, sample.edit_gate
    if kind == "last-token":
        queries, edits = sample.query_last, sample.edit_last
    routing = gate.route(queries, gate.key(edits), torch.arange(len(edits)))
    inside = routing.is_open[sample.in_scope].float().mean()
    outside = routing.is_open[~sample.in_scope].float().mean()
    assert float(inside) == pytest.approx(found[kind].true_open_rate)
    assert float(outside) == pytest.approx(found[kind].false_open_rate)
    assert float(inside) > 0.8 > 0.5 > float(outside)


def test_the_mean_is_that_of_gate_states_on_both_sides():
    sample = sample_of()
    gate = gate_of("centred")
    set_thresholds(gate, sample)
    expected = torch.cat([sample.query_gate, sample.edit_gate]).mean(0)
    torch.testing.assert_close(gate.mean, expected)


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_calibration_is_the_same_whichever_kind_the_gate_has(kind: Any):
    gate, other = gate_of(kind), gate_of("cosine", 0.3)
    sample = sample_of()
    assert set_thresholds(gate, sample) == set_thresholds(other, sample)
    assert torch.equal(gate.thresholds, other.thresholds)
    assert gate.config == GateConfig(kind), "the configuration stays"


def test_a_threshold_in_the_configuration_wins_over_calibration():
    gate = gate_of("cosine", 0.3)
    set_thresholds(gate, sample_of())
    assert gate.threshold == 0.3


def test_calibrating_again_forgets_the_first_time():
    gate, fresh = gate_of(), gate_of()
    set_thresholds(gate, sample_of(1))
    assert set_thresholds(gate, sample_of(2)) == set_thresholds(fresh, sample_of(2))
    assert torch.equal(gate.mean, fresh.mean)


def test_another_configuration_shares_the_calibration_and_decides_for_itself():
    gate = gate_of()
    found = set_thresholds(gate, sample_of())
    other = gate.with_config(GateConfig("centred"))
    assert other.threshold == pytest.approx(found["centred"].threshold, abs=1e-6)
    assert torch.equal(other.mean, gate.mean)
    assert other.kind == "centred" and gate.kind == "cosine"
    assert other.threshold != gate.threshold


def test_calibration_is_saved_with_the_gate():
    gate = gate_of("centred")
    set_thresholds(gate, sample_of())
    other = gate_of("centred")
    other.load_state_dict(gate.state_dict())
    assert other.threshold == gate.threshold


@pytest.mark.parametrize(("value", "side"), [(True, "out of"), (False, "in")])
def test_calibration_needs_pairs_on_both_sides(value: bool, side: str):
    sample = sample_of()
    sample.in_scope.fill_(value)
    gate = gate_of()
    with pytest.raises(CalibrationError, match=f"no queries {side} scope"):
        set_thresholds(gate, sample)
    assert bool(gate.thresholds.isnan().all())


@pytest.mark.parametrize("name", ["query_gate", "query_last", "edit_gate", "edit_last"])
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_calibration_refuses_states_that_are_not_finite(name: str, value: float):
    sample = sample_of()
    getattr(sample, name)[3, 1] = value
    gate = gate_of()
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        set_thresholds(gate, sample)
    assert bool(gate.thresholds.isnan().all())
    assert bool((gate.mean == 0).all())
