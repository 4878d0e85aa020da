"""What a gate decides of a forward: the same alone, in a batch, among many, and under gradients."""

import math

import pytest
import torch
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError, DataError
from easyedit_dualedit.method.config import GateConfig, GateKind
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_keys import EDIT_COUNTS, vision_mean
from easyedit_dualedit.model.inputs import TokenLayout

HIDDEN, LENGTH = 16, 7
GATE = LENGTH - 2
MANY = 1500


def gate_of(kind: GateKind = "learned", threshold: float = 0.6) -> Gate:
    torch.manual_seed(0)
    gate = Gate(HIDDEN, GateConfig(kind))
    gate.projection.thresholds.copy_(torch.full((len(EDIT_COUNTS),), threshold))
    gate.thresholds.fill_(threshold)
    return gate


def layout_of(rows: int) -> TokenLayout:
    vision = torch.zeros(rows, LENGTH, dtype=torch.bool)
    vision[:, 1:4] = True
    last = torch.full((rows,), LENGTH - 1)
    return TokenLayout(
        real=torch.ones_like(vision),
        ids=torch.zeros_like(vision, dtype=torch.long),
        vision=vision,
        text=~vision,
        answered=torch.arange(LENGTH).eq(LENGTH - 1).long().expand(rows, -1),
        gate=last - 1,
        last=last,
    )


def decided(gate: Gate, hidden: torch.Tensor, keys: torch.Tensor) -> list[int]:
    return gate.decide(hidden, layout_of(len(hidden)), keys).edit_index.tolist()


def keys_of(gate: Gate, hidden: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return gate.key(hidden[:, GATE], vision_mean(hidden, layout_of(len(hidden)).vision))


@pytest.mark.parametrize("kind", ["learned", "cosine", "centred", "last-token"])
@pytest.mark.parametrize("count", [1, 20, MANY])
def test_a_single_row_is_decided_as_in_a_batch(kind: GateKind, count: int):
    gate = gate_of(kind, 0.95)
    gate.mean.normal_(0.0, 0.2)
    hidden = torch.randn(40, LENGTH, HIDDEN)
    place = LENGTH - 1 if kind == "last-token" else GATE
    others, pictures = torch.randn(2, count, HIDDEN)
    others[:20] = hidden[:count, place][:20]
    pictures[:20] = vision_mean(hidden, layout_of(40).vision)[:count][:20]
    with torch.no_grad():
        keys = gate.key(others, pictures)
        queries = hidden + 0.3 * torch.randn_like(hidden)
        together = decided(gate, queries, keys)
        assert 0 < sum(edit >= 0 for edit in together) < 40
        assert together == [decided(gate, queries[row : row + 1], keys)[0] for row in range(40)]


def test_open_rows_are_told_with_their_edits():
    gate = gate_of("cosine", 0.9)
    hidden = torch.randn(4, LENGTH, HIDDEN)
    keys = gate.key(hidden[[3, 1, 1], GATE])
    assert gate.decide(hidden, layout_of(4), keys).open_rows() == {1: 2, 3: 0}
    assert gate.decide(-hidden, layout_of(4), keys).open_rows() == {}


@pytest.mark.parametrize("kind", ["learned", "cosine", "centred", "open"])
def test_no_target_token_has_a_say(kind: GateKind):
    gate = gate_of(kind, 0.9)
    hidden = torch.randn(2, LENGTH, HIDDEN)
    keys = keys_of(gate, hidden)
    other = hidden.clone()
    other[:, GATE + 1 :] = math.nan
    assert decided(gate, other, keys) == decided(gate, hidden, keys) == [0, 1]


def test_a_row_without_a_picture_is_compared_as_one_of_zeros():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    layout = layout_of(1)
    layout.vision[:] = False
    with torch.no_grad():
        key = gate.key(hidden[:, GATE], None)
        assert gate.decide(hidden, layout, torch.cat([key, -key])).edit_index.tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("repeats", [1, MANY])
def test_an_edit_that_is_nan_concerns_no_query_and_hides_no_other(value: float, repeats: int):
    gate = gate_of()
    hidden = torch.randn(3, LENGTH, HIDDEN)
    keys = keys_of(gate, hidden)
    keys[2] = value
    keys = keys.repeat(repeats, 1)
    newest = len(keys) - 3
    with torch.no_grad():
        routing = gate.decide(hidden, layout_of(3), keys)
    assert routing.edit_index.tolist() == [newest, newest + 1, -1]
    assert not bool(routing.similarity.isnan().any())


@pytest.mark.parametrize("count", [3, MANY])
def test_the_newest_of_equals_applies(count: int):
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    keys = torch.zeros(count, 128)
    keys[[0, 1, count // 2]] = keys_of(gate, hidden)
    assert decided(gate, hidden, keys) == [max(1, count // 2)]


@pytest.mark.parametrize(("less", "chosen"), [(5e-6, 1), (1e-4, 0)])
def test_similarities_that_differ_by_rounding_are_equal(less: float, chosen: int):
    gate = gate_of("cosine")
    query = torch.zeros(1, HIDDEN)
    query[0, 0] = 1.0
    near = query.clone()
    near[0, 0], near[0, 1] = 1 - less, math.sqrt(1 - (1 - less) ** 2)
    assert gate.route(query, torch.cat([query, near])).edit_index.tolist() == [chosen]


def test_the_best_of_many_applies_however_new_others_are():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    key = keys_of(gate, hidden)[0]
    keys = torch.zeros(MANY, 128)
    near = functional.normalize(key + 0.5 * functional.normalize(torch.randn(128), dim=0), dim=0)
    assert 0.6 < float(near @ key) < 0.99
    keys[3], keys[MANY - 1] = key, near
    assert decided(gate, hidden, keys) == [3]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_query_that_is_nan_opens_nothing(value: float):
    gate = gate_of("cosine")
    hidden = torch.randn(2, LENGTH, HIDDEN)
    keys = functional.normalize(hidden[:, GATE], dim=-1)
    assert decided(gate, hidden, keys) == [0, 1]
    hidden[0, GATE] = value
    assert decided(gate, hidden, keys) == [-1, 1]


@pytest.mark.parametrize("count", [1, 3])
def test_an_open_gate_stays_closed_for_rows_that_are_nan(count: int):
    hidden = torch.randn(4, LENGTH, HIDDEN)
    for row, value in ((0, math.nan), (1, math.inf), (2, -math.inf)):
        hidden[row, GATE] = value
    keys = functional.normalize(torch.randn(count, HIDDEN), dim=-1)
    assert list(gate_of("open").decide(hidden, layout_of(4), keys).open_rows()) == [3]


@pytest.mark.parametrize("kind", ["learned", "cosine", "centred"])
def test_states_and_keys_may_have_gradients(kind: GateKind):
    gate = gate_of(kind)
    hidden = torch.randn(4, LENGTH, HIDDEN, requires_grad=True)
    keys = gate.key(hidden[:, GATE], vision_mean(hidden, layout_of(4).vision))
    assert keys.requires_grad
    assert decided(gate, hidden, keys) == [0, 1, 2, 3]


def test_rows_must_fit_the_assignment():
    gate = gate_of()
    hidden = torch.randn(2, LENGTH, HIDDEN)
    keys, assignment = keys_of(gate, hidden), torch.tensor([0, 1])
    repeated = hidden.repeat_interleave(2, 0)
    routing = gate.decide(repeated, layout_of(4), keys, assignment)
    assert routing.edit_index.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="3 rows for edits assigned to 2"):
        gate.decide(torch.randn(3, LENGTH, HIDDEN), layout_of(3), keys, assignment)


def test_no_threshold_is_an_error_that_says_so():
    gate = Gate(HIDDEN, GateConfig("cosine"))
    keys = functional.normalize(torch.randn(3, HIDDEN), dim=-1)
    with pytest.raises(CalibrationError, match="no threshold"):
        gate.decide(torch.randn(1, LENGTH, HIDDEN), layout_of(1), keys)


def test_states_of_half_precision_are_compared_in_that_of_the_keys():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN).half()
    routing = gate.decide(hidden, layout_of(1), keys_of(gate, hidden))
    assert routing.edit_index.tolist() == [0] and routing.similarity.dtype == torch.float32
