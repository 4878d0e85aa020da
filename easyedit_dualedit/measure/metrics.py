"""What is counted in a model's logits, and means over cases with their intervals.

A number of one case lies in 0 to 1. Which numbers a protocol is made of says `scores`.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.intervals import Interval, interval
from easyedit_dualedit.measure.specificity import FAMILIES
from easyedit_dualedit.model.inputs import IGNORED

LOCALITY = ("text_locality", "image_locality")
"""Metrics that compare with the unedited model instead of with a target."""

AVERAGE = "average"


def named_tokens(logits: Tensor, target: Tensor) -> list[tuple[int, ...]]:
    """Return for each row the tokens that the arg-max names where the answer stands.

    Args:
        logits: [b, s, v]; those before an answer token name it.
        target: True at the answer tokens that were fed in, bool [b, s].

    Raises:
        DataError: if a row has no answer token.
    """
    empty = (~target.any(1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"rows {empty} have no answer token to score; give each query a target")
    named = logits[:, :-1].argmax(-1)
    places = target[:, 1:].to(named.device)
    return [tuple(row[at].tolist()) for row, at in zip(named, places, strict=True)]


def agreement(tokens: Sequence[int], others: Sequence[int]) -> float:
    """Return the share of places at which two answers of one length have the same token."""
    return sum(a == b for a, b in zip(tokens, others, strict=True)) / len(others)


def answer_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Return the share of one row's answer tokens that the arg-max names, as EasyEdit computes it.

    The number is in single precision.

    Args:
        logits: [1, s, v].
        labels: token ids to predict, aligned with the input, IGNORED elsewhere, [1, s].
    """
    wanted = labels[:, 1:]
    mask = wanted != IGNORED
    hits = (logits[:, :-1].argmax(-1) == wanted) & mask
    return float(hits.sum() / float(mask.sum()))


def likeliest(logits: Tensor, k: int) -> Tensor:
    """Return the k likeliest tokens at every position, likeliest first, long [b, s, k]."""
    return logits.float().topk(min(k, logits.shape[-1]), dim=-1).indices


def likeliest_agreement(before: Tensor, after: Tensor) -> float:
    """Return the share of ranks at which the likeliest tokens agree: EasyEdit's locality.

    Ranks are compared one by one at every position, those of the prompt and of image tokens
    included; of sequences of different lengths, the ends are compared.

    Args:
        before: what `likeliest` returned for the unedited model, [1, s, k].
        after: the same for the edited model, [1, t, k].
    """
    length = min(before.shape[1], after.shape[1])
    return float((before[:, -length:] == after[:, -length:]).float().mean())


def summary(cases: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Return the interval of each metric, of the average of the five, and of RI, NI and CI.

    Args:
        cases: for each case the value of every one of `METRICS`, 0 to 1; and of the kinds of
            `specificity.FAMILIES` if RI, NI and CI are wanted, each of which is the mean of those
            of its kinds that a case has, and no part of the average.

    Raises:
        DataError: if there are no cases.
    """
    intervals = {metric: interval([case[metric] for case in cases]) for metric in METRICS}
    intervals[AVERAGE] = interval([average(case) for case in cases])
    for name, kinds in FAMILIES.items():
        values = {kind: [case[kind] for case in cases if kind in case] for kind in kinds}
        asked = [[case[kind] for kind in kinds if kind in case] for case in cases]
        family = [sum(each) / len(each) for each in asked if each]
        if family:
            intervals[name] = interval(family)
            intervals |= {kind: interval(each) for kind, each in values.items() if each}
    return intervals


def average(values: Mapping[str, float]) -> float:
    """Return the mean of a case's five metrics, or of all its values where it has none of these."""
    counted = [name for name in METRICS if name in values] or list(values)
    return sum(values[name] for name in counted) / len(counted)


def means(cases: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """Return the interval of each metric over the cases that have it, in the fullest's order."""
    names = dict.fromkeys(name for case in sorted(cases, key=len, reverse=True) for name in case)
    return {name: interval([case[name] for case in cases if name in case]) for name in names}
