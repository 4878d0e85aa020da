"""How the page calls things, and how it writes numbers."""

import math
from collections.abc import Mapping
from typing import Any

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.measure.binding import ASKED, BESIDE, PICTURE, SHARES, TEXT, UNTOUCHED
from easyedit_dualedit.measure.metrics import AVERAGE, LOCALITY
from easyedit_dualedit.measure.nearest import PRESERVATION
from easyedit_dualedit.measure.specificity import FAMILIES, KINDS

UNEDITED = "unedited"
"""The method that makes no edit; all others are compared with it."""
FAVOURITE = "DualEdit"
"""The method that the page is about, where it is among the methods."""

_METRICS = {
    "other_image": "edit's question, random picture",
    "other_question": "edit's picture, random question",
    "no_image": "edit's question, no picture",
    "similar_text": "sample with the most similar question",
    "similar_image": "sample with the most similar picture",
    TEXT: "the true thing, without the picture",
    PICTURE: "another question about the picture",
    BESIDE: "what else is in the picture",
    "picture_old": "picture: old answer",
    "picture_new": "picture: new answer",
    "picture_neither": "picture: neither answer",
}
ORDER = (*METRICS, *FAMILIES, *KINDS, *ASKED, AVERAGE)
"""Metrics in the order of the page; others follow."""

COMPARING = (*LOCALITY, *FAMILIES, *KINDS, *UNTOUCHED, PRESERVATION)
"""Metrics that ask whether the answer is the same as before the edit, not whether it is right."""

TELLING = SHARES
"""Metrics that tell answers apart without calling one of them wrong, nor one method ahead."""

ASKED_BY: Mapping[str, tuple[str, ...]] = {
    **FAMILIES,
    **{metric: (question,) for metric, question in ASKED.items()},
}
"""Metric -> the questions that it is about, where they have other names."""

DASH = "\N{EN DASH}"
MISSING = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"
UNBROKEN = "\N{NO-BREAK SPACE}"


def metric_name(metric: str) -> str:
    """Return what the page calls a metric."""
    return _METRICS.get(metric, metric.replace("_", " "))


def ordered(names: "set[str] | dict[str, Any]", order: "tuple[str, ...]") -> list[str]:
    """Return names in a given order, those that it lacks last and as they come."""
    return [name for name in order if name in names] + [name for name in names if name not in order]


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def decimal(value: Any, digits: int = 1) -> str:
    """Return a number with thousands set apart, or a dash."""
    found = number(value)
    return MISSING if found is None else f"{found:,.{digits}f}".replace("-", MINUS)


def whole(value: Any) -> str:
    """Return a whole number with thousands set apart, or a dash."""
    return decimal(value, 0)


def count(value: Any) -> str:
    """Return a large number with its power of a thousand, or a dash."""
    return _scaled(value, 1000, ("", " k", " M", " G", " T"))


def size(value: Any) -> str:
    """Return a number of bytes with its binary unit, or a dash."""
    return _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def duration(value: Any) -> str:
    """Return seconds as a reader would say them, or a dash."""
    found = number(value)
    if found is None:
        return MISSING
    if found < 0.1:
        return f"{found * 1000:.3g} ms"
    if found < 100:
        return f"{found:.3g} s"
    minutes = round(found / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def counted(amount: int, noun: str) -> str:
    """Return an amount with its noun, in the plural where it is one."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def _scaled(value: Any, base: int, units: tuple[str, ...]) -> str:
    found = number(value)
    if found is None:
        return MISSING
    power = 0
    while abs(found) >= base and power < len(units) - 1:
        found /= base
        power += 1
    return (f"{found:.0f}" if power == 0 or found >= 100 else f"{found:.3g}") + units[power]
