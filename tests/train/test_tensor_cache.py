"""The cache keeps to its bytes, and gives back what it was given."""

import torch

from easyedit_dualedit.train.tensor_cache import TensorCache, size_of


def test_the_least_recently_used_is_forgotten_first():
    cache = TensorCache(budget=800)
    for key in "ab":
        cache.put(key, torch.zeros(100))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(100))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert (cache.size, len(cache)) == (800, 2)


def test_values_come_back_as_they_were():
    kept = {"pooled": torch.randn(3, 4, dtype=torch.bfloat16), "deep": [torch.arange(5), None]}
    cache = TensorCache(budget=1000)
    cache.put("a", (dict, kept))
    kind, found = cache.get("a")
    assert kind is dict and found["deep"][1] is None
    assert torch.equal(found["pooled"], kept["pooled"]) and found["pooled"].dtype == torch.bfloat16
    assert torch.equal(found["deep"][0], kept["deep"][0])
    assert cache.size == size_of(kept) == 3 * 4 * 2 + 5 * 8


def test_what_is_held_is_a_copy_that_keeps_nothing_larger_alive():
    whole = torch.randn(100, 4, requires_grad=True)
    cache = TensorCache(budget=1000)
    cache.put("a", whole[:2])
    before = whole[:2].detach().clone()
    with torch.no_grad():
        whole.zero_()
    found = cache.get("a")
    assert torch.equal(found, before) and not found.requires_grad
    assert found.untyped_storage().nbytes() == 2 * 4 * 4


def test_the_bytes_are_a_bound():
    cache = TensorCache(budget=1000)
    cache.put("a", torch.zeros(10))
    cache.put("large", torch.zeros(251))
    assert cache.get("large") is None and cache.get("a") is not None, "nothing makes room for it"
    for number in range(30):
        cache.put(number, torch.zeros(1 + 37 * number % 250))
        assert cache.size <= 1000
        assert cache.size == sum(size_of(cache.get(key)) for key in range(30)) + size_of(
            cache.get("a")
        )
    nothing = TensorCache(budget=0)
    nothing.put("a", torch.zeros(1))
    assert len(nothing) == 0


def test_a_value_in_use_outlives_its_place():
    cache = TensorCache(budget=400)
    first = torch.randn(100)
    cache.put("a", first)
    used = cache.get("a")
    cache.put("b", torch.zeros(100))
    assert cache.get("a") is None and torch.equal(used, first)


def test_a_key_that_is_held_stays_as_it_is():
    cache = TensorCache(budget=400)
    cache.put("a", torch.ones(2))
    cache.put("a", torch.zeros(9))
    assert torch.equal(cache.get("a"), torch.ones(2)) and cache.size == 8
