"""The shortlist leaves out no edit that may apply, and nearly all that cannot."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import easyedit_dualedit.method.shortlist as shortlist
from easyedit_dualedit.method.shortlist import FEWEST, Shortlist, newest_of_best


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


def best_of(made_of: Shortlist, query: Tensor, least: float) -> int | None:
    return made_of.best(query.numpy(), float(query.norm()), least, TIE)


def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which the number of edits is added whose products are compared in full."""
    found: list[int] = []
    real = shortlist.newest_of_best

    def counting(products: Any, least: float, tie: float) -> int:
        found.append(len(products))
        return real(products, least, tie)

    monkeypatch.setattr(shortlist, "newest_of_best", counting)
    return found


def made(keys: Tensor) -> Shortlist:
    found = Shortlist.of(keys)
    assert found is not None
    return found


@pytest.mark.parametrize("width", [16, 128, 100])
@pytest.mark.parametrize("outliers", [False, True])
def test_the_edit_is_that_of_the_whole_product(width: int, outliers: bool):
    count = FEWEST + 37
    keys = keys_of(count, width, outliers)
    keys[900:903] = keys[97]  # ties
    aside = functional.normalize(torch.randn(width), dim=0)
    keys[905] = functional.normalize(keys[97] + 0.02 * aside, dim=0)  # close, and no tie
    made_of = made(keys)
    useful = 0
    for index in range(0, count, 97):
        query = 3.0 * (keys[index] + 0.02 * torch.randn(width))
        products, length = keys @ query, float(query.norm())
        largest = float(products.amax())
        # The hardest cases: a threshold that the best product only just reaches, or misses.
        for least in (largest * (1 - 1e-5), largest * (1 + 1e-5), 0.9 * length, 0.7 * length):
            found = best_of(made_of, query, least)
            if found is not None:
                assert found == newest_of_best(products.numpy(), least, TIE * length)
                useful += 1
    assert useful >= 20


def test_few_edits_are_compared_in_full(monkeypatch: pytest.MonkeyPatch):
    keys = spread_keys(10_050)
    for place, share in enumerate((0.5, 0.6, 0.7)):
        keys[place] = functional.normalize(keys[5_000] + share * keys[place], dim=0)
    assert int((keys @ keys[5_000] >= 0.7).sum()) >= 4
    made_of = made(keys[:10_000])
    compared = looked_at(monkeypatch)
    assert all(best_of(made_of, query, 0.8) == -1 for query in keys[10_000:])
    assert len(compared) <= 5 and sum(compared) < 20
    compared.clear()
    assert best_of(made_of, keys[9_999], 0.8) == 9_999
    # Edits that may reach the threshold, but not the best of them, are not compared either.
    assert best_of(made_of, keys[5_000], 0.7) == 5_000 and compared == []
    # Where bytes cannot tell which is the best, all that may be are.
    keys[17] = functional.normalize(keys[5_000] + 0.003 * torch.randn(128), dim=0)
    assert best_of(made(keys), keys[5_000], 0.7) == 5_000 and compared == [2]


def test_the_bound_is_needed():
    """Without room for the error of eight bits, edits would be left out."""
    keys = keys_of(FEWEST, 32)
    strict = replace(made(keys), room=0.0)
    missed = 0
    for index in range(50):
        query = keys[index] + 0.05 * torch.randn(32)
        missed += best_of(strict, query, float((keys @ query).amax()) - 1e-6) != index
    assert missed > 0


def test_the_length_of_the_rest_is_needed():
    """What lies outside the main directions counts, as if it all pointed the same way."""
    keys = spread_keys()
    aside = torch.linalg.svd(torch.from_numpy(made(keys).directions)).Vh[-1]
    keys[3] = functional.normalize(keys[3] + aside, dim=0)
    made_of = made(keys)
    assert best_of(made_of, keys[3], 0.95) == 3
    made_of.columns[-4:] = 0
    assert best_of(made_of, keys[3], 0.95) == -1


def test_where_most_edits_may_apply_the_whole_product_is_better():
    made_of = made(keys_of(5_000, 16))
    query = torch.randn(16)
    length = float(query.norm())
    assert best_of(made_of, query, 0.02 * length) is None  # less than the room
    assert best_of(made_of, query, -length) is None
    same = made(keys_of(1, 16).repeat(5_000, 1))
    assert best_of(same, keys_of(1, 16)[0], 0.9) is None


def test_keys_that_are_not_numbers_are_on_no_shortlist():
    keys = keys_of(FEWEST, 128)
    query = keys[0].clone()
    keys[7], keys[300] = math.nan, math.inf
    assert best_of(made(keys), query, 0.9) == 0


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
