"""Metrics: the same numbers as a plain NumPy computation gives, with honest intervals."""

import numpy as np
import pytest
import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.measure.metrics import (
    AVERAGE,
    agreement,
    means,
    named_tokens,
    summary,
)
from easyedit_dualedit.model.inputs import IGNORED


def padded(rows: list[list[int]], width: int, side: str, filler: int) -> Tensor:
    """Return rows of one width, padded on one side."""
    filled = []
    for row in rows:
        padding = [filler] * (width - len(row))
        filled.append(padding + row if side == "left" else row + padding)
    return torch.tensor(filled)


def logits_that_answer(answers: Tensor, vocabulary: int = 9) -> Tensor:
    """Return noisy logits whose arg-max at a position is the answer one to the right of it."""
    logits = torch.rand(*answers.shape, vocabulary)
    rows, columns = answers.shape
    for row in range(rows):
        for column in range(columns - 1):
            logits[row, column, answers[row, column + 1].clamp(min=0)] += 2.0
    return logits


def numpy_named(logits: Tensor, target: Tensor) -> list[tuple[int, ...]]:
    values, asked = logits.numpy(), target.numpy()
    return [
        tuple(int(np.argmax(row[place - 1])) for place in np.flatnonzero(marks))
        for row, marks in zip(values, asked, strict=True)
    ]


def random_labels(count: int = 40, width: int = 12) -> Tensor:
    """Return labels of rows whose answers have 1 to 5 tokens anywhere but at the first place."""
    generator = np.random.default_rng(1)
    labels = torch.full((count, width), IGNORED)
    for row in range(count):
        length = int(generator.integers(1, 6))
        start = int(generator.integers(1, width - length + 1))
        labels[row, start : start + length] = torch.from_numpy(generator.integers(0, 5, length))
    return labels


def test_the_tokens_named_agree_with_numpy():
    target = random_labels() != IGNORED
    logits = torch.randn(*target.shape, 5)
    tokens = named_tokens(logits, target)
    assert tokens == numpy_named(logits, target)
    assert len({len(row) for row in tokens}) > 3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [0, 6, 8])
def test_a_known_row_names_what_was_counted_by_hand(side: str, filler: int):
    """The padding side, and what stands in the padding, do not matter."""
    rows = padded([[0, 1, 2, 3, 4], [0, 5, 6], [0, 1, 3, 3]], 8, side, filler)
    asked = padded([[0, 0, 1, 1, 1], [0, 1, 1], [0, 0, 1, 1]], 8, side, 0).bool()
    tokens = named_tokens(logits_that_answer(rows), asked)
    assert tokens == [(2, 3, 4), (5, 6), (3, 3)]
    wanted = [(2, 3, 7), (1, 6), (3, 5)]
    shares = [agreement(named, want) for named, want in zip(tokens, wanted, strict=True)]
    assert shares == [2 / 3, 0.5, 0.5]


def test_agreement_agrees_with_numpy():
    first, second = np.random.default_rng(5).integers(0, 3, (2, 50, 6)).tolist()
    shares = [agreement(one, other) for one, other in zip(first, second, strict=True)]
    assert shares == np.mean(np.equal(first, second), axis=1).tolist()
    assert len(set(shares)) > 3
    assert agreement(first[0], first[0]) == 1.0


def test_answers_of_different_lengths_are_not_compared():
    with pytest.raises(ValueError, match="longer"):
        agreement((1, 2), (1, 2, 3))


def test_rows_without_an_answer_are_refused_by_number():
    target = random_labels(4) != IGNORED
    target[1] = target[3] = False
    with pytest.raises(DataError, match=r"rows \[1, 3\] have no answer token"):
        named_tokens(torch.randn(*target.shape, 5), target)


def test_nothing_to_average_is_refused():
    with pytest.raises(DataError, match="no cases"):
        summary([])


def test_the_summary_averages_the_five_metrics_of_each_case():
    generator = np.random.default_rng(2)
    cases = [
        dict(zip(METRICS, generator.integers(0, 2, 5).astype(float).tolist(), strict=True))
        for _ in range(30)
    ]
    found = summary(cases)
    assert tuple(found) == (*METRICS, AVERAGE)
    table = np.array([[case[metric] for metric in METRICS] for case in cases])
    for place, metric in enumerate(METRICS):
        assert found[metric].mean == pytest.approx(100 * table[:, place].mean())
    assert found[AVERAGE].mean == pytest.approx(100 * table.mean())
    # The average of a case is one number, so its interval is that of 30 cases, not of 150.
    assert found[AVERAGE] == interval(table.mean(1).tolist())


def test_means_are_over_the_cases_that_have_a_metric_in_the_order_of_the_fullest():
    cases = [{"c": 1.0}, {"a": 0.0, "b": 1.0, "c": 0.0}, {"a": 1.0}, {}]
    found = means(cases)
    assert {name: (value.mean, value.n) for name, value in found.items()} == {
        "a": (50.0, 2),
        "b": (100.0, 1),
        "c": (50.0, 2),
    }
    assert list(found) == ["a", "b", "c"]
    assert means([]) == {}
