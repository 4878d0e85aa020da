"""The losses of training, as pure functions of logits and labels.

Shapes: b batch, s sequence, v vocabulary. Logits at a position predict the token after it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.model.inputs import IGNORED


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step by metric, unweighted, in nats; and their weighted sum."""

    total: Tensor
    """Among several processes, this one's part of it: its gradients are to be added up."""
    by_metric: dict[str, float]
    accuracy: dict[str, float]
    """Share of answer tokens that the edited model finds likeliest, 0 to 1, by metric; of metrics
    out of scope, share of positions at which it finds the same likeliest as the unedited one."""


def answer_logits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits that predict answer tokens, [n, v], and those tokens, [n].

    Args:
        logits: [b, k, v] of the last k positions of each row.
        labels: token ids to predict, aligned with the input, IGNORED elsewhere, [b, s], s >= k.
    """
    following = labels[:, -logits.shape[1] :][:, 1:]
    answer = following != IGNORED
    return logits[:, :-1][answer], following[answer]


def answer_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of the answer tokens, their mean over the batch, in nats.

    Args:
        logits: as in `answer_logits`.
        labels: as in `answer_logits`.
    """
    predicted, expected = answer_logits(logits, labels)
    return functional.cross_entropy(predicted.float(), expected)


def answer_divergence(plain: Tensor, edited: Tensor, labels: Tensor) -> Tensor:
    """Return KL(plain || edited) at the answer tokens, their mean over the batch, in nats.

    Args:
        plain: logits of the unedited model, as in `answer_logits`.
        edited: logits of the edited model, the same shape.
        labels: as in `answer_logits`.
    """
    before = functional.log_softmax(answer_logits(plain, labels)[0].float(), -1)
    after = functional.log_softmax(answer_logits(edited, labels)[0].float(), -1)
    divergence: Tensor = (before.exp() * (before - after)).sum(-1)
    return divergence.mean() if len(divergence) else torch.zeros((), device=edited.device)
