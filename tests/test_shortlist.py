"""The shortlist leaves out no edit that may apply, and nearly all that cannot."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import easyedit_dualedit.shortlist as shortlist
from easyedit_dualedit.shortlist import FEWEST, Shortlist


def keys_of(count: int, width: int, outliers: bool = False) -> Tensor:
    torch.manual_seed(0)
    states = torch.randn(count, width)
    if outliers:
        states[:, 3] *= 20  # hidden states of real models have a few such dimensions
    return functional.normalize(states, dim=-1)


def listed(found: list[slice], count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    for block in found:
        assert 0 <= block.start < block.stop <= count
        mask[block] = True
    return mask


def made(keys: Tensor) -> Shortlist:
    found = Shortlist.of(keys)
    assert found is not None
    return found


@pytest.mark.parametrize("width", [16, 128, 100])
@pytest.mark.parametrize("outliers", [False, True])
def test_no_edit_that_reaches_the_threshold_is_left_out(width: int, outliers: bool):
    count = FEWEST + 37
    keys = keys_of(count, width, outliers)
    made_of = made(keys)
    useful = 0
    for index in range(0, count, 97):
        query = 3.0 * (keys[index] + 0.02 * torch.randn(width))
        products, length = keys @ query, float(query.norm())
        # The hardest case: a threshold that the best product only just reaches.
        for least in (float(products.amax()), 0.9 * length, 0.7 * length):
            blocks = made_of.blocks(query, length, least)
            if blocks is not None:
                assert bool(listed(blocks, count)[products >= least].all())
                useful += 1
    assert useful >= 15


def test_a_query_that_no_edit_concerns_is_compared_with_none_again():
    keys = keys_of(10_000, 128)
    made_of = made(keys)
    for query in functional.normalize(torch.randn(50, 128), dim=-1):
        assert made_of.blocks(query, 1.0, 0.7) == []
    own = made_of.blocks(keys[9_999], 1.0, 0.7)
    assert own is not None and listed(own, 10_000)[9_999] and len(own) == 1


def test_the_bound_is_needed():
    """Without room for the error of eight bits, edits would be left out."""
    keys = keys_of(FEWEST, 128)
    made_of = made(keys)
    strict = Shortlist(made_of.columns, made_of.scale, 0.0, 0.0, made_of.count)
    missed = 0
    for index in range(50):
        query = keys[index] + 0.05 * torch.randn(128)
        best = float((keys @ query).amax())
        found = strict.blocks(query, float(query.norm()), best)
        missed += found is not None and not bool(listed(found, FEWEST)[index])
    assert missed > 0


def test_where_most_edits_may_apply_the_whole_product_is_better():
    made_of = made(keys_of(40 * 128, 16))
    query = torch.ones(16)
    assert made_of.blocks(query, 4.0, 0.1) is None
    assert made_of.blocks(query, 4.0, -1.0) is None
    assert made_of.blocks(torch.zeros(16), 0.0, 0.0) is None


def test_keys_that_are_not_numbers_are_on_no_shortlist():
    keys = keys_of(FEWEST, 128)
    query = keys[0].clone()
    keys[7], keys[300] = math.nan, math.inf
    found = made(keys).blocks(query, 1.0, 0.9)
    assert found == [slice(0, 128)]


@pytest.mark.parametrize(
    "keys",
    [
        keys_of(FEWEST - 1, 16),
        keys_of(FEWEST, 16).double(),
        torch.zeros(FEWEST, 16),
        torch.full((FEWEST, 16), math.nan),
        keys_of(FEWEST, 16).to("meta"),
    ],
    ids=["few", "double", "zeros", "nan", "elsewhere"],
)
def test_there_is_none_where_it_would_not_be_quicker(keys: Tensor):
    assert Shortlist.of(keys) is None


@pytest.mark.parametrize("fault", ["saturating", "missing"])
def test_a_processor_whose_products_of_bytes_are_not_exact_has_none(
    fault: str, monkeypatch: pytest.MonkeyPatch
):
    def product(left: Tensor, right: Tensor) -> Tensor:
        if fault == "missing":
            raise RuntimeError("not compiled with it")
        return (left.long() @ right.long()).clamp(max=30_000).int()

    monkeypatch.setattr(shortlist.torch, "_int_mm", product)
    assert Shortlist.of(keys_of(FEWEST, 16)) is None
