"""The shortlist leaves out no edit that may apply, and nearly all that cannot."""

import math
from dataclasses import replace

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


TIE = 1e-5


def spread_keys(count: int = 10_000) -> Tensor:
    """Return keys like those of a gate: longer in some directions than in others."""
    torch.manual_seed(1)
    states = torch.randn(count, 128) * torch.linspace(2.0, 0.1, 128)
    return functional.normalize(states, dim=-1)


def listed(made_of: Shortlist, query: Tensor, least: float) -> list[int]:
    found = made_of.candidates(query.numpy(), float(query.norm()), least, TIE)
    assert found is not None
    return found.tolist()


def made(keys: Tensor) -> Shortlist:
    found = Shortlist.of(keys)
    assert found is not None
    return found


@pytest.mark.parametrize("width", [16, 128, 100])
@pytest.mark.parametrize("outliers", [False, True])
def test_no_edit_of_the_largest_product_is_left_out(width: int, outliers: bool):
    count = FEWEST + 37
    keys = keys_of(count, width, outliers)
    keys[900:903] = keys[97]  # ties
    made_of = made(keys)
    useful = 0
    for index in range(0, count, 97):
        query = 3.0 * (keys[index] + 0.02 * torch.randn(width))
        products, length = keys @ query, float(query.norm())
        best = float(products.amax())
        # The hardest case: a threshold that the best product only just reaches.
        for least in (best, 0.9 * length, 0.7 * length):
            found = made_of.candidates(query.numpy(), length, least, TIE * length)
            if found is not None:
                wanted = (products >= max(least, best - TIE * length)).nonzero()[:, 0]
                assert set(wanted.tolist()) <= set(found.tolist())
                assert found.tolist() == sorted(found.tolist())
                useful += 1
    assert useful >= 15


def test_a_query_that_no_edit_concerns_is_compared_with_none_again():
    keys = spread_keys(10_050)
    made_of = made(keys[:10_000])
    none = [listed(made_of, query, 0.8) == [] for query in keys[10_000:]]
    assert sum(none) >= 45
    assert listed(made_of, keys[9_999], 0.8) == [9_999]


def test_edits_short_of_the_best_are_not_compared_again():
    keys = spread_keys()
    for place, share in enumerate((0.5, 0.6, 0.7)):
        keys[place] = functional.normalize(keys[5_000] + share * keys[place], dim=0)
    assert int((keys @ keys[5_000] >= 0.7).sum()) >= 4
    assert listed(made(keys), keys[5_000], 0.7) == [5_000]
    # Where bytes cannot tell which is the best, all that may be are.
    keys[17] = functional.normalize(keys[5_000] + 0.003 * torch.randn(128), dim=0)
    assert listed(made(keys), keys[5_000], 0.7) == [17, 5_000]


def test_the_bound_is_needed():
    """Without room for the error of eight bits, edits would be left out."""
    keys = keys_of(FEWEST, 32)
    strict = replace(made(keys), room=0.0)
    missed = 0
    for index in range(50):
        query = keys[index] + 0.05 * torch.randn(32)
        best = float((keys @ query).amax())
        found = strict.candidates(query.numpy(), float(query.norm()), best, 0.0)
        missed += found is not None and index not in found
    assert missed > 0


def test_the_length_of_the_rest_is_needed():
    """What lies outside the main directions counts, as if it all pointed the same way."""
    keys = spread_keys()
    aside = torch.linalg.svd(torch.from_numpy(made(keys).directions)).Vh[-1]
    keys[3] = functional.normalize(keys[3] + aside, dim=0)
    made_of = made(keys)
    assert listed(made_of, keys[3], 0.95) == [3]
    made_of.columns[-4:] = 0
    assert listed(made_of, keys[3], 0.95) == []


def test_where_most_edits_may_apply_the_whole_product_is_better():
    made_of = made(keys_of(5_000, 16))
    query = torch.randn(16).numpy()
    length = float((query**2).sum() ** 0.5)
    assert made_of.candidates(query, length, 0.02 * length, TIE) is None  # less than the room
    assert made_of.candidates(query, length, -length, TIE) is None
    same = made(keys_of(1, 16).repeat(5_000, 1))
    assert same.candidates(same.keys[0], 1.0, 0.9, TIE) is None


def test_keys_that_are_not_numbers_are_on_no_shortlist():
    keys = keys_of(FEWEST, 128)
    query = keys[0].clone()
    keys[7], keys[300] = math.nan, math.inf
    assert listed(made(keys), query, 0.9) == [0]


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
