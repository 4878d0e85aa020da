"""Losses: the same numbers as a plain NumPy computation gives."""

import numpy as np
import pytest
import torch
from torch import Tensor

from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.train.losses import (
    StepLosses,
    answer_cross_entropy,
    answer_divergence,
    answer_logits,
)

VOCABULARY = 11


def labels_of(rows: list[list[int]], width: int, side: str) -> Tensor:
    """Return labels with answers at the end of rows that are padded on one side.

    The rows have 4, 5, 6, ... real tokens.
    """
    labels = torch.full((len(rows), width), IGNORED)
    for index, answer in enumerate(rows):
        end = width if side == "left" else 4 + index
        labels[index, end - len(answer) : end] = torch.tensor(answer)
    return labels


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def positions(labels: np.ndarray) -> list[tuple[int, int]]:
    """Return row and column of every label."""
    rows, columns = labels.shape
    return [(r, c) for r in range(rows) for c in range(columns) if labels[r, c] != IGNORED]


def numpy_cross_entropy(logits: Tensor, labels: Tensor) -> float:
    predicted, expected = log_probabilities(logits.double().numpy()), labels.numpy()
    return float(
        np.mean([-predicted[row, at - 1, expected[row, at]] for row, at in positions(expected)])
    )


def numpy_divergence(plain: Tensor, edited: Tensor, labels: Tensor) -> float:
    before = log_probabilities(plain.double().numpy())
    after = log_probabilities(edited.double().numpy())
    return float(
        np.mean(
            [
                (np.exp(before[row, at - 1]) * (before[row, at - 1] - after[row, at - 1])).sum()
                for row, at in positions(labels.numpy())
            ]
        )
    )


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(3, 8, VOCABULARY) * 3


@pytest.fixture(params=["left", "right"])
def labels(request: pytest.FixtureRequest) -> Tensor:
    return labels_of([[3], [4, 5], [6, 7, 3]], 8, request.param)


def test_cross_entropy_is_the_mean_over_all_answer_tokens(logits: Tensor, labels: Tensor):
    got = float(answer_cross_entropy(logits, labels))
    assert got == pytest.approx(numpy_cross_entropy(logits, labels), rel=1e-5)


def test_divergence_is_that_of_the_edited_from_the_plain_model(logits: Tensor, labels: Tensor):
    edited = logits + torch.randn_like(logits)
    got = float(answer_divergence(logits, edited, labels))
    assert got == pytest.approx(numpy_divergence(logits, edited, labels), rel=1e-4)
    turned = float(answer_divergence(edited, logits, labels))
    assert turned != pytest.approx(got, rel=1e-2)
    assert got > 0
    assert float(answer_divergence(logits, logits, labels)) == 0.0


def test_logits_before_the_answer_and_at_its_end_do_not_count(logits: Tensor, labels: Tensor):
    counted = torch.zeros(labels.shape, dtype=torch.bool)
    for row, at in positions(labels.numpy()):
        counted[row, at - 1] = True
    other = torch.where(counted[..., None], logits, torch.randn_like(logits) * 9)
    assert torch.equal(answer_cross_entropy(other, labels), answer_cross_entropy(logits, labels))
    edited = logits * 2
    assert torch.equal(
        answer_divergence(other, torch.where(counted[..., None], edited, -other), labels),
        answer_divergence(logits, edited, labels),
    )


def test_logits_of_the_last_positions_are_enough(logits: Tensor):
    labels = labels_of([[3], [4, 5], [6, 7, 3]], 8, "left")
    for kept in (4, 5, 8):
        predicted, expected = answer_logits(logits[:, -kept:], labels)
        assert expected.tolist() == [3, 4, 5, 6, 7, 3]
        assert torch.equal(predicted, torch.stack([logits[r, c - 1] for r, c in _places(labels)]))
        assert torch.equal(
            answer_cross_entropy(logits[:, -kept:], labels), answer_cross_entropy(logits, labels)
        )


def _places(labels: Tensor) -> list[tuple[int, int]]:
    return positions(labels.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_dtypes_are_summed_in_float32(logits: Tensor, labels: Tensor, dtype: torch.dtype):
    low = logits.to(dtype)
    edited = (logits + 0.5 * torch.randn_like(logits)).to(dtype)
    assert answer_cross_entropy(low, labels).dtype == torch.float32
    assert float(answer_cross_entropy(low, labels)) == pytest.approx(
        numpy_cross_entropy(low, labels), rel=1e-5
    )
    assert float(answer_divergence(low, edited, labels)) == pytest.approx(
        numpy_divergence(low, edited, labels), rel=1e-4
    )


def test_gradients_reach_the_edited_logits_at_answers_only(logits: Tensor, labels: Tensor):
    edited = (logits + torch.randn_like(logits)).requires_grad_()
    (answer_divergence(logits, edited, labels) + answer_cross_entropy(edited, labels)).backward()
    assert edited.grad is not None
    touched = {(r, c) for r, c in edited.grad.abs().sum(-1).nonzero().tolist()}
    assert touched == {(row, at - 1) for row, at in positions(labels.numpy())}


def test_no_answer_diverges_by_nothing(logits: Tensor):
    nothing = torch.full((3, 8), IGNORED)
    assert float(answer_divergence(logits, logits * 2, nothing)) == 0.0


def test_a_step_of_several_batches_has_their_mean():
    first = StepLosses(torch.tensor(1.0), {"reliability": 1.0, "text_locality": 4.0}, {"a": 1.0})
    second = StepLosses(torch.tensor(3.0), {"reliability": 2.0}, {"a": 0.5})
    mean = StepLosses.mean([first, second])
    assert float(mean.total) == 2.0
    assert mean.by_metric == {"reliability": 1.5, "text_locality": 4.0}
    assert mean.accuracy == {"a": 0.75}
