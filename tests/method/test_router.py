"""A gate in front of edits: a single row is decided as quickly as can be, and like any other."""

import math

import pytest
import torch
from torch.nn import functional

from easyedit_dualedit.errors import CalibrationError, DataError
from easyedit_dualedit.method.config import GateConfig, GateKind
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_projection import EDIT_COUNTS, vision_mean
from easyedit_dualedit.method.router import OpenRows, Router
from easyedit_dualedit.method.shortlist import FEWEST
from easyedit_dualedit.model.inputs import TokenLayout

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


def edit_of(router: Router, hidden: torch.Tensor) -> int:
    """Return what a forward of one row [1, s, d] is told; -1 for no edit."""
    found = router.open_rows(hidden, layout_of(1))
    assert found.rows == (0,) * len(found.edits) and len(found.edits) <= 1
    return found.edits[0] if found.edits else -1


def keys_of(gate: Gate, hidden: torch.Tensor) -> torch.Tensor:
    layout = layout_of(len(hidden))
    with torch.no_grad():
        return gate.key(hidden[:, LENGTH - 2], vision_mean(hidden, layout.vision))


@pytest.mark.parametrize("kind", ["learned", "cosine", "centred", "last-token"])
@pytest.mark.parametrize("count", [1, 20, FEWEST + 5])
def test_a_single_row_is_decided_as_in_a_batch(kind: GateKind, count: int):
    gate = gate_of(kind, 0.95)
    gate.mean.normal_(0.0, 0.2)
    hidden = torch.randn(40, LENGTH, HIDDEN)
    place = LENGTH - 1 if kind == "last-token" else LENGTH - 2
    others = torch.randn(count, HIDDEN)
    others[:20] = hidden[:count, place][:20]
    pictures = torch.randn(count, HIDDEN)
    pictures[:20] = vision_mean(hidden, layout_of(40).vision)[:count][:20]
    with torch.no_grad():
        router = Router(gate, gate.key(others, pictures))
    assert (router._shortlist is None) == (count < FEWEST)
    queries = hidden + 0.3 * torch.randn_like(hidden)
    together = router.route(queries, layout_of(40))
    assert 0 < int(together.is_open.sum()) < 40
    alone = [edit_of(router, queries[row : row + 1]) for row in range(40)]
    assert alone == together.edit_index.tolist()
    rows = router.open_rows(queries, layout_of(40))
    assert rows.rows == tuple(together.is_open.nonzero()[:, 0].tolist())
    assert rows.edits == tuple(together.edit_index[together.is_open].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 3])
def test_the_rows_of_a_batch_are_decided_together(
    count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    gate = gate_of("cosine", 0.9)
    hidden = torch.randn(4, LENGTH, HIDDEN).to(dtype)
    keys = gate.key(hidden[[3, 1, 1][:count], LENGTH - 2])
    router = Router(gate, keys)
    whole = OpenRows.of(router.route(hidden, layout_of(4)))
    monkeypatch.setattr(Router, "route", lambda *_given: pytest.fail("row by row, or slowly"))
    monkeypatch.setattr(Router, "_edit_of_row", lambda *_given: pytest.fail("row by row"))
    expected = OpenRows((3,), (0,)) if count == 1 else OpenRows((1, 3), (2, 0))
    assert router.open_rows(hidden, layout_of(4)) == whole == expected
    assert router.open_rows(-hidden, layout_of(4)) == OpenRows((), ())
    monkeypatch.undo()
    for place, value in ((LENGTH - 2, math.nan), (LENGTH - 2, 0.0), (1, math.nan)):
        spoilt = hidden.clone()
        spoilt[1, place] = value
        found = router.open_rows(spoilt, layout_of(4))
        assert found == (expected if place == 1 else OpenRows((3,), (0,)))


@pytest.mark.parametrize("sees", [True, False])
def test_the_key_of_one_query_points_where_that_of_the_projection_does(sees: bool):
    projection = gate_of().projection
    state, vision = torch.randn(2, HIDDEN)
    vision = vision if sees else torch.zeros(HIDDEN)
    with torch.no_grad():
        found = functional.normalize(projection.bound()(torch.stack([state, vision])), dim=0)
        torch.testing.assert_close(found, projection(state, vision if sees else None))


def test_a_row_without_a_picture_is_decided_as_in_a_batch():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    layout = layout_of(1)
    layout.vision[:] = False
    with torch.no_grad():
        key = gate.key(hidden[:, LENGTH - 2], None)
    router = Router(gate, torch.cat([key, -key]))
    assert router.route(hidden, layout).edit_index.tolist() == [0]
    assert router.open_rows(hidden, layout).edits == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_edit_that_is_not_a_number_concerns_no_query_and_hides_no_other(value: float):
    gate = gate_of()
    hidden = torch.randn(3, LENGTH, HIDDEN)
    keys = keys_of(gate, hidden)
    keys[2] = value
    for router in (Router(gate, keys), Router(gate, keys.repeat(FEWEST, 1))):
        newest = len(router._keys) - 3
        for row, expected in enumerate((newest, newest + 1, -1)):
            found = router.route(hidden[row : row + 1], layout_of(1))
            assert found.edit_index.tolist() == [expected]
            assert not bool(found.similarity.isnan())
            assert edit_of(router, hidden[row : row + 1]) == expected


@pytest.mark.parametrize("count", [3, FEWEST])
def test_the_newest_of_equals_applies(count: int):
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    keys = torch.zeros(count, 128)
    keys[[0, 1, count // 2]] = keys_of(gate, hidden)
    router = Router(gate, keys)
    assert router.route(hidden, layout_of(1)).edit_index.tolist() == [max(1, count // 2)]
    assert edit_of(router, hidden) == max(1, count // 2)


def test_the_best_of_many_applies_however_new_others_are():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN)
    key = keys_of(gate, hidden)[0]
    keys = torch.zeros(FEWEST, 128)
    aside = functional.normalize(torch.randn(128), dim=0)
    near = functional.normalize(key + 0.5 * aside, dim=0)
    keys[3], keys[FEWEST - 1] = key, near
    assert 0.6 < float(near @ key) < 0.99
    router = Router(gate, keys)
    assert edit_of(router, hidden) == 3 == int(router.route(hidden, layout_of(1)).edit_index)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_a_query_that_is_not_a_number_opens_nothing(value: float):
    gate = gate_of("cosine")
    hidden = torch.randn(1, LENGTH, HIDDEN)
    router = Router(gate, functional.normalize(hidden[:, LENGTH - 2], dim=-1))
    assert edit_of(router, hidden) == 0
    hidden[0, LENGTH - 2] = value
    assert router.route(hidden, layout_of(1)).edit_index.tolist() == [-1]
    assert edit_of(router, hidden) == -1


def test_an_open_gate_opens_for_the_best_edit_of_many():
    gate = gate_of("open")
    hidden = torch.randn(1, LENGTH, HIDDEN)
    keys = functional.normalize(torch.randn(FEWEST, HIDDEN), dim=-1)
    router = Router(gate, keys)
    assert [edit_of(router, hidden)] == router.route(hidden, layout_of(1)).edit_index.tolist()


@pytest.mark.parametrize("kind", ["learned", "cosine", "centred"])
@pytest.mark.parametrize("count", [1, 4, FEWEST])
def test_states_and_keys_may_have_gradients(kind: GateKind, count: int):
    gate = gate_of(kind)
    hidden = torch.randn(4, LENGTH, HIDDEN, requires_grad=True)
    pictures = vision_mean(hidden, layout_of(4).vision)
    keys = gate.key(hidden[:, LENGTH - 2], pictures).repeat(FEWEST // 4, 1)[:count]
    router = Router(gate, keys)
    assert keys.requires_grad
    alone = [edit_of(router, hidden[row : row + 1]) for row in range(4)]
    together = router.open_rows(hidden, layout_of(4))
    assert dict(zip(together.rows, together.edits, strict=True)) == {
        row: edit for row, edit in enumerate(alone) if edit >= 0
    }
    assert together.rows == tuple(range(min(count, 4)))


@pytest.mark.parametrize("count", [1, 3])
def test_an_open_gate_stays_closed_for_rows_that_are_not_numbers(count: int):
    hidden = torch.randn(4, LENGTH, HIDDEN)
    for row, value in ((0, math.nan), (1, math.inf), (2, -math.inf)):
        hidden[row, LENGTH - 2] = value
    router = Router(gate_of("open"), functional.normalize(torch.randn(count, HIDDEN), dim=-1))
    assert router.open_rows(hidden, layout_of(4)).rows == (3,)
    assert [edit_of(router, hidden[row : row + 1]) >= 0 for row in range(4)] == [False] * 3 + [True]


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
    for decide in (router.route, router.open_rows):
        with pytest.raises(CalibrationError, match="no threshold"):
            decide(torch.randn(1, LENGTH, HIDDEN), layout_of(1))


def test_states_of_half_precision_are_compared_in_that_of_the_keys():
    gate = gate_of()
    hidden = torch.randn(1, LENGTH, HIDDEN).half()
    router = Router(gate, keys_of(gate, hidden))
    found = router.route(hidden, layout_of(1))
    assert found.edit_index.tolist() == [0] and found.similarity.dtype == torch.float32
    assert edit_of(router, hidden) == 0
