"""The gate: similarity, routing, and which tokens of a forward it reads."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GATE_KINDS, GateConfig
from easyedit_dualedit.method.gate import CALIBRATED_KINDS, Gate

HIDDEN = 4
NAN = float("nan")


def gate_of(kind: Any = "cosine", threshold: float | None = None, size: int = HIDDEN) -> Gate:
    return Gate(size, GateConfig(kind, threshold))


def axis(*values: float) -> Tensor:
    return torch.tensor([[*values, *[0.0] * (HIDDEN - len(values))]])


@pytest.mark.parametrize("kind", ["cosine", "last-token"])
def test_keys_are_unit_vectors_whose_products_are_cosines(kind: str):
    states = torch.randn(5, HIDDEN) * 7
    keys = gate_of(kind).key(states)
    expected = functional.cosine_similarity(states[:, None], states[None], dim=-1)
    torch.testing.assert_close(keys @ keys.T, expected)


def test_a_centred_key_is_the_cosine_after_the_mean_is_taken_off():
    gate = gate_of("centred")
    gate.mean.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    states = torch.randn(5, HIDDEN)
    expected = functional.normalize(states - gate.mean, dim=-1)
    torch.testing.assert_close(gate.key(states), expected)
    assert not torch.allclose(gate.with_config(GateConfig("cosine")).key(states), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_keys_are_float32_whatever_the_states_are(dtype: torch.dtype):
    states = torch.full((2, 3, HIDDEN), 300.0)  # whose squares overflow float16
    keys = gate_of().key(states.to(dtype))
    assert keys.dtype == torch.float32 and keys.shape == states.shape
    torch.testing.assert_close(keys, torch.full_like(states, 0.5))


def test_keys_are_float32_in_an_editor_of_half_precision():
    assert gate_of().to(torch.bfloat16).key(torch.randn(2, HIDDEN)).dtype == torch.float32


@pytest.mark.parametrize(
    "convert",
    [Gate.half, Gate.bfloat16, Gate.double, lambda gate: gate.to("cpu", torch.bfloat16)],
    ids=["half", "bfloat16", "double", "to"],
)
def test_thresholds_stay_exact_in_whatever_dtype_the_gate_is(convert: Callable[[Gate], Gate]):
    gate = gate_of()
    gate.thresholds.fill_(0.9982)
    gate.projection.thresholds.fill_(0.9982)
    sharing = gate.with_config(GateConfig("learned"))
    exact = torch.tensor(0.9982).item()
    assert convert(gate).mean.dtype != torch.float32
    for each in (gate, copy.deepcopy(gate), sharing, gate.float()):
        assert each.threshold == each.projection.threshold(30) == exact
    assert gate.half().state_dict()["thresholds"].dtype == torch.float32
    moved = gate.to("meta").to_empty(device="cpu")
    assert moved.thresholds.device.type == moved.projection.thresholds.device.type == "cpu"


@pytest.mark.parametrize("kind", ["cosine", "centred", "last-token"])
def test_similarity_at_the_threshold_opens_and_below_does_not(kind: str):
    query = axis(3, 4)
    edit = axis(1)
    similarity = float(gate_of(kind).key(query) @ gate_of(kind).key(edit).T)
    for threshold, is_open in (
        (similarity, True),
        (math.nextafter(similarity, -1) - 1e-6, True),
        (similarity + 1e-6, False),
    ):
        gate = gate_of(kind, threshold)
        routing = gate.route(query, gate.key(edit))
        assert routing.is_open.tolist() == [is_open]
        assert routing.edit_index.tolist() == [0 if is_open else -1]
        assert float(routing.similarity) == pytest.approx(0.6)


def test_the_open_gate_needs_no_threshold_and_takes_opposites():
    gate = gate_of("open")
    assert gate.threshold == -math.inf
    assert bool(gate.route(axis(-1), gate.key(axis(1))).is_open.all())


def test_each_row_gets_the_best_edit():
    gate = gate_of(threshold=0.9)
    edits = gate.key(torch.eye(HIDDEN)[:3])
    queries = torch.tensor([[0, 0, 5.0, 0.1], [9.0, 1, 0, 0], [1, 1, 1, 1.0], [0, 1.0, 0, 0]])
    routing = gate.route(queries, edits)
    assert routing.edit_index.tolist() == [2, 0, -1, 1]
    assert routing.is_open.tolist() == [True, True, False, True]
    expected = functional.cosine_similarity(queries[:, None], torch.eye(HIDDEN)[None, :3], dim=-1)
    torch.testing.assert_close(routing.similarity, expected.amax(1))


@pytest.mark.parametrize("count", [2, 5])
def test_the_newest_of_equal_edits_wins(count: int):
    gate = gate_of(threshold=0.5)
    edits = gate.key(torch.cat([axis(0, 1), *[axis(1)] * count, axis(0, 0, 1)]))
    assert gate.route(axis(1), edits).edit_index.tolist() == [count]


def test_an_assignment_allows_one_edit_only():
    gate = gate_of(threshold=0.9)
    edits = gate.key(torch.eye(HIDDEN))
    queries = torch.eye(HIDDEN)[[0, 1, 2]]
    routing = gate.route(queries, edits, torch.tensor([0, 0, 2]))
    assert routing.edit_index.tolist() == [0, -1, 2]
    assert routing.similarity.tolist() == [1, 0, 1]
    opened = gate.with_config(GateConfig("open")).route(queries, edits, torch.tensor([3, 0, 1]))
    assert opened.edit_index.tolist() == [3, 0, 1]


def test_without_edits_every_gate_is_shut_even_uncalibrated():
    for kind in GATE_KINDS:
        routing = gate_of(kind).route(torch.randn(3, HIDDEN), torch.empty(0, HIDDEN))
        assert routing.edit_index.tolist() == [-1, -1, -1]
        assert not routing.is_open.any()
        assert routing.similarity.tolist() == [-math.inf] * 3


@pytest.mark.parametrize("kind", CALIBRATED_KINDS)
def test_a_query_that_is_not_a_number_opens_no_gate(kind: Any):
    gate = gate_of(kind, -1.0)
    queries = torch.cat([axis(NAN), axis(math.inf), axis(1)])
    assert gate.route(queries, gate.key(axis(1))).is_open.tolist() == [False, False, True]


def test_an_edit_that_is_not_a_number_leaves_the_others():
    gate = gate_of(threshold=0.5)
    edits = gate.key(torch.cat([axis(1), axis(NAN)]))
    assert gate.route(axis(1), edits).edit_index.tolist() == [0]


def test_autocast_does_not_round_similarities():
    gate = gate_of(threshold=0.998, size=64)
    edit = torch.randn(1, 64)
    query = edit + torch.randn(1, 64) * 0.08
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = gate.route(query, gate.key(edit)).similarity
    assert torch.equal(rounded, gate.route(query, gate.key(edit)).similarity)


@pytest.mark.parametrize("kind", CALIBRATED_KINDS)
def test_a_threshold_is_asked_for_before_there_is_one(kind: Any):
    gate = gate_of(kind)
    with pytest.raises(CalibrationError, match=f"the {kind} gate has no threshold: train it"):
        gate.route(axis(1), gate.key(axis(1)))
