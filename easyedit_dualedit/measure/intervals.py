"""Means over cases and how far they may be off, in percent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from easyedit_dualedit.errors import DataError

RESAMPLES = 2000
"""Bootstrap resamples behind an interval of a mean."""

_FEW = 30
"""Cases below which a bootstrap is too narrow: equal ones would have no interval at all."""

_Z = 1.959963984540054
"""Of the normal distribution: 95 % lie within."""


@dataclass(frozen=True)
class Interval:
    """A mean over cases with its 95 % interval, all in percent."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float | int]:
        """Return the values by name."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "n": self.n}


def interval(values: Sequence[float], *, are_shares: bool = True, seed: int = 0) -> Interval:
    """Return the mean of values in percent, with a 95 % interval.

    Where every value is 0 or 1 the mean is a share, and the interval is Wilson's: 300 of 300 are
    98.7 to 100, where a bootstrap would say 100 to 100. Elsewhere it is a bootstrap over cases, of
    fewer than 30 cases at least as wide as that of a share with the same mean.

    Args:
        values: of the cases, 0 to 1, or any numbers.
        are_shares: False if values are amounts, of which 0 and 1 are two like others.
        seed: of the bootstrap.

    Raises:
        DataError: if there are no values.
    """
    if not len(values):
        raise DataError("no cases to average; evaluate at least one record")
    sample = np.asarray(values, dtype=np.float64)
    if are_shares and bool(np.isin(sample, (0.0, 1.0)).all()):
        low, high = _wilson(float(sample.mean()), len(sample))
        mean = float((sample * 100.0).mean())
        return Interval(mean, min(mean, low * 100.0), max(mean, high * 100.0), len(sample))
    found = _bootstrapped(sample, seed)
    if len(sample) >= _FEW or not (are_shares and _is_bounded(sample)):
        return found
    low, high = _wilson(float(sample.mean()), len(sample))
    return _widened(found, low, high)


def paired_difference(
    first: Sequence[float], second: Sequence[float], *, seed: int = 0
) -> Interval:
    """Return the mean of `first` minus `second` in percentage points, with a 95 % interval.

    For shares it is Newcombe's interval of paired proportions (Statistics in Medicine 17, 1998,
    method 10 without its correction), made of Wilson's of each; elsewhere a paired bootstrap, of
    fewer than 30 cases at least as wide as that of shares with the same means and correlation.

    Args:
        first: values of one method, case by case, 0 to 1.
        second: values of another on the same cases.
        seed: of the bootstrap over cases.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    both = np.concatenate([one, other])
    count, share, rest = len(one), float(one.mean()), float(other.mean())
    are_shares = bool(np.isin(both, (0.0, 1.0)).all())
    if not are_shares and (count >= _FEW or not _is_bounded(both)):
        return _bootstrapped(one - other, seed)
    (low, high), (low_rest, high_rest) = _wilson(share, count), _wilson(rest, count)
    spread = float(one.std() * other.std())  # of shares that of Newcombe's formula
    correlation = (float((one * other).mean()) - share * rest) / spread if spread else 0.0
    below = _joined(share - low, high_rest - rest, correlation)
    above = _joined(high - share, rest - low_rest, correlation)
    mean = share - rest
    if not are_shares:
        return _widened(_bootstrapped(one - other, seed), mean - below, mean + above)
    return Interval(100.0 * mean, 100.0 * (mean - below), 100.0 * (mean + above), count)


def _is_bounded(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    return bool(((values >= 0.0) & (values <= 1.0)).all())


def _widened(found: Interval, low: float, high: float) -> Interval:
    """Return an interval that reaches at least from one share to another, or difference."""
    return replace(found, low=min(found.low, 100.0 * low), high=max(found.high, 100.0 * high))


def _wilson(share: float, count: int) -> tuple[float, float]:
    square = _Z * _Z / count
    middle = (share + square / 2) / (1 + square)
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _joined(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(0.0, one * one - 2 * correlation * one * other + other * other))


def _bootstrapped(sample: np.ndarray[tuple[int], np.dtype[np.float64]], seed: int) -> Interval:
    sample = sample * 100.0
    draws = np.random.default_rng(seed).integers(0, len(sample), (RESAMPLES, len(sample)))
    low, high = np.percentile(sample[draws].mean(1), [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high), len(sample))
