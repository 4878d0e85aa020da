"""What a full cache keeps: what came last, or what it holds."""

import random

import torch

from easyedit_dualedit.model.tensor_cache import TensorCache


def hits(cache: TensorCache, count: int, epochs: int) -> tuple[float, int]:
    """Return the share of values found, and how often one was copied, asked in random orders."""
    source, found, copied = random.Random(0), 0, 0
    for _ in range(epochs):
        for key in source.sample(range(count), count):
            if cache.get(key) is not None:
                found += 1
            else:
                held = len(cache)
                cache.put(key, torch.zeros(1))
                copied += len(cache) > held or not cache.stays
    return found / (count * epochs), copied


def test_where_a_few_fit_those_are_found_each_time_and_nothing_else_is_copied():
    """As picture features of E-VQA: 1 GiB holds 227 of 14,332."""
    overwriting, overwrites = hits(TensorCache(4 * 20), 1200, 20)
    staying, copies = hits(TensorCache(4 * 20, stays=True), 1200, 20)
    assert copies == 20 and overwrites > 20_000
    assert abs(staying - 20 * 19 / (1200 * 20)) < 1e-9
    assert staying > 1.5 * overwriting


def test_what_came_last_is_kept_by_default():
    cache = TensorCache(8)
    for key in range(3):
        cache.put(key, torch.zeros(1))
    assert cache.get(0) is None and cache.get(2) is not None
