"""A gate in front of edits: a single row is decided as quickly as can be, and like any other."""

import math

import pytest
import torch
from torch.nn import functional

from easyedit_dualedit.batch import TokenLayout
from easyedit_dualedit.config import GateConfig, GateKind
from easyedit_dualedit.errors import CalibrationError, DataError
from easyedit_dualedit.gate import Gate
from easyedit_dualedit.projection import EDIT_COUNTS, vision_mean
from easyedit_dualedit.router import Router

HIDDEN, LENGTH = 16, 7


def gate_of(kind: GateKind = "learned", threshold: float = 0.6) -> Gate:
    torch.manual_seed(0)
    gate = Gate(HIDDEN, GateConfig(kind))
    gate.projection.thresholds.copy_(torch.full((len(EDIT_COUNTS),), threshold))
    gate.thresholds.fill_(threshold)
    return gate


def layout_of(rows: int) -> TokenLayout:
    vision = torch.zeros(rows, LENGTH, dtype=torch.bool)
    vision[:, 1:4] = True
    real = torch.ones_like(vision)
    last = torch.full((rows,), LENGTH - 1)
    return TokenLayout(real=real, vision=vision, text=~vision, gate=last - 1, last=last)


def keys_of(gate: Gate, hidden: torch.Tensor) -> torch.Tensor:
    layout = layout_of(len(hidden))
    with torch.no_grad():
        return gate.key(hidden[:, LENGTH - 2], vision_mean(hidden, layout.vision))


@pytest.mark.parametrize("kind", ["learned", "cosine"])
def test_a_single_row_is_decided_as_in_a_batch(kind: GateKind):
    gate = gate_of(kind, 0.7)
    hidden = torch.randn(40, LENGTH, HIDDEN)
    router = Router(gate, keys_of(gate, hidden[:20]))
    queries = hidden + 0.5 * torch.randn_like(hidden)
    together = router.route(queries, layout_of(40))
    assert 0 < int(together.is_open.sum()) < 40
    for row in range(40):
        alone = router.route(queries[row : row + 1], layout_of(1))
        assert alone.edit_index.tolist() == [together.edit_index[row].item()]
        torch.testing.assert_close(alone.similarity[0], together.similarity[row])


def test_the_key_of_one_query_is_that_of_the_projection():
    projection = gate_of().projection
    state, vision = torch.randn(2, HIDDEN)
    with torch.no_grad():
        torch.testing.assert_close(projection.bound()(state, vision), projection(state, vision))
        without = torch.zeros(HIDDEN)
        torch.testing.assert_close(projection.bound()(state, without), projection(state))


def test_an_edit_that_is_not_a_number_concerns_no_query_and_hides_no_other():
    gate = gate_of()
    hidden = torch.randn(3, LENGTH, HIDDEN)
    keys = keys_of(gate, hidden)
    keys[2] = math.nan
    router = Router(gate, keys)
    for row, expected in enumerate((0, 1, -1)):
        found = router.route(hidden[row : row + 1], layout_of(1))
        assert found.edit_index.tolist() == [expected]
        assert not bool(found.similarity.isnan())


def test_the_newest_of_equals_applies():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    router = Router(gate, keys_of(gate, hidden).repeat(3, 1))
    assert router.route(hidden, layout_of(1)).edit_index.tolist() == [2]


def test_a_query_that_is_not_a_number_opens_nothing():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    router = Router(gate, keys_of(gate, hidden))
    hidden[0, LENGTH - 2] = math.nan
    assert router.route(hidden, layout_of(1)).edit_index.tolist() == [-1]


def test_rows_must_fit_the_assignment():
    gate = gate_of()
    hidden = torch.randn(2, LENGTH, HIDDEN)
    router = Router(gate, keys_of(gate, hidden), torch.tensor([0, 1]))
    repeated = router.route(hidden.repeat_interleave(2, 0), layout_of(4))
    assert repeated.edit_index.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="3 rows for edits assigned to 2"):
        router.route(torch.randn(3, LENGTH, HIDDEN), layout_of(3))


def test_no_threshold_is_an_error_that_says_so():
    gate = Gate(HIDDEN, GateConfig("cosine"))
    router = Router(gate, functional.normalize(torch.randn(3, HIDDEN), dim=-1))
    with pytest.raises(CalibrationError, match="no threshold"):
        router.route(torch.randn(1, LENGTH, HIDDEN), layout_of(1))


def test_states_of_half_precision_are_compared_in_that_of_the_keys():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN).half()
    router = Router(gate, keys_of(gate, hidden))
    found = router.route(hidden, layout_of(1))
    assert found.edit_index.tolist() == [0] and found.similarity.dtype == torch.float32
