"""Intervals hold the truth as often as they say: of shares, of means, and of paired differences."""

import json
import math

import numpy as np
import pytest

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.intervals import RESAMPLES, interval, paired_difference


def test_an_interval_holds_its_mean_and_repeats_itself():
    values = np.random.default_rng(4).random(60).tolist()
    found = interval(values)
    assert found.mean == pytest.approx(100 * float(np.mean(values)))
    assert 0.0 <= found.low < found.mean < found.high <= 100.0
    assert found.n == 60
    assert interval(values) == found
    assert interval(values, seed=1) != found
    assert interval(values, seed=1).mean == found.mean


def test_an_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(4).normal(0.5, 0.1, 400)
    found = interval(values.tolist())
    half = 1.96 * values.std() / math.sqrt(len(values)) * 100
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_an_interval_narrows_with_the_root_of_the_number_of_cases():
    few, many = interval([0.0, 1.0] * 10), interval([0.0, 1.0] * 160)
    ratio = (few.high - few.low) / (many.high - many.low)
    assert ratio == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        (300, 300, 98.736, 100.0),
        (0, 300, 0.0, 1.264),
        (5, 10, 23.659, 76.341),
        (1, 1, 20.654, 100.0),
    ],
)
def test_shares_have_wilson_intervals(hits: int, count: int, low: float, high: float):
    told = interval([1.0] * hits + [0.0] * (count - hits))
    assert (told.low, told.high) == pytest.approx((low, high), abs=1e-3)
    assert told.mean == pytest.approx(100 * hits / count)


def test_shares_hold_the_truth_where_a_bootstrap_does_not():
    generator = np.random.default_rng(0)
    truth, held = 0.99, 0
    for hits in generator.binomial(100, truth, 2000):
        told = interval([1.0] * hits + [0.0] * (100 - hits))
        held += told.low <= 100 * truth <= told.high
    assert held / 2000 > 0.9  # a bootstrap: 0.63


def test_equal_means_of_few_cases_leave_the_doubt_of_a_share():
    share = interval([1.0] * 5 + [0.0] * 15)
    told = interval([0.25] * 20)
    assert told.mean == 25.0 and (told.low, told.high) == (share.low, share.high)
    wide = interval([0.0, 0.2, 1.0, 1.0])
    assert wide.low <= 0.2 * 100 and wide.high > 90
    enough = interval([0.25] * 30)
    assert (enough.low, enough.high) == (25.0, 25.0)
    amounts = interval([3.5] * 4, are_shares=False)
    assert (amounts.low, amounts.high) == (350.0, 350.0)
    beyond = interval([-0.5] * 4)
    assert (beyond.low, beyond.high) == (-50.0, -50.0), "no share has such a value"


@pytest.mark.parametrize("count", [1, 3, 8])
def test_few_pairs_of_means_that_all_differ_alike_prove_nothing(count: int):
    found = paired_difference([0.8] * count, [0.4] * count)
    assert found.mean == pytest.approx(40.0) and found.low < 0 < found.high
    sure = paired_difference([0.8] * 30, [0.4] * 30)
    assert sure.low == pytest.approx(40.0)


def test_amounts_that_are_all_zero_are_no_share_of_anything():
    found = interval([0.0] * 24, are_shares=False)
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert interval([0.0] * 24).high > 10


def test_nothing_to_average_is_refused():
    with pytest.raises(DataError, match="no cases"):
        interval([])


def test_paired_shares_hold_the_truth():
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        hard = generator.random(80) < 0.1
        first = np.where(hard, generator.random(80) < 0.3, generator.random(80) < 0.98)
        second = np.where(hard, generator.random(80) < 0.2, generator.random(80) < 0.9)
        told = paired_difference(first.astype(float), second.astype(float))
        held += told.low <= 100 * (0.1 * 0.1 + 0.9 * 0.08) <= told.high
    assert 0.92 < held / 1000 <= 1.0


def test_paired_shares_that_are_all_equal_still_leave_doubt():
    told = paired_difference([1.0] * 300, [1.0] * 300)
    assert told.mean == 0.0
    assert (told.low, told.high) == pytest.approx((-1.264, 1.264), abs=1e-3)
    # Two methods that fail on the same cases are told apart better than two that do not.
    one = np.array([0.0] * 20 + [1.0] * 80)
    same, other = paired_difference(one, one), paired_difference(one, one[::-1])
    assert same.high - same.low < (other.high - other.low) / 3


def test_a_paired_interval_is_narrow_where_two_methods_fail_on_the_same_cases():
    generator = np.random.default_rng(0)
    first = generator.random(100)
    same = paired_difference(first, first - 0.1)
    assert (same.mean, same.low, same.high) == pytest.approx((10.0, 10.0, 10.0))
    other = paired_difference(first, generator.permutation(first))
    assert other.low < 0.0 < other.high
    draws = np.random.default_rng(0).integers(0, 100, (RESAMPLES, 100))
    means = ((first - first[::-1]) * 100)[draws].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    found = paired_difference(first, first[::-1])
    assert (found.low, found.high) == pytest.approx((low, high))


def test_an_interval_can_be_written_as_json():
    values = json.loads(json.dumps(interval([0.0, 1.0, 1.0]).to_dict()))
    assert set(values) == {"mean", "low", "high", "n"}
    assert isinstance(values["n"], int)
