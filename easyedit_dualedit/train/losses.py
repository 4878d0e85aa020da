"""The losses of training, as pure functions of logits and labels.

Shapes: b batch, s sequence, v vocabulary, n answer tokens. Logits at a position predict the token
after it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.processes import Processes


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step by metric, unweighted, in nats; and their weighted sum."""

    total: Tensor
    """Among several processes, this one's part of it: its gradients are to be added up."""
    by_metric: dict[str, float]
    accuracy: dict[str, float]
    """Share of answer tokens that the edited model finds likeliest, 0 to 1, by metric; of metrics
    out of scope, share of positions at which it finds the same likeliest as the unedited one."""

    @classmethod
    def mean(cls, parts: Sequence["StepLosses"]) -> "StepLosses":
        """Return what the batches of one step have on average; a metric of those that have it."""

        def averaged(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
            names = dict.fromkeys(name for each in values for name in each)
            found = {name: [each[name] for each in values if name in each] for name in names}
            return {name: sum(each) / len(each) for name, each in found.items()}

        return cls(
            torch.stack([part.total for part in parts]).mean(),
            averaged([part.by_metric for part in parts]),
            averaged([part.accuracy for part in parts]),
        )


@dataclass(frozen=True)
class AnswerTokens:
    """How an edited model does on each answer token of some records' queries."""

    loss: Tensor
    """Cross-entropy in scope, divergence from the unedited model out of it, in nats, [n]."""
    right: Tensor
    """True where the likeliest token is the answer's or, out of scope, the unedited model's, bool
    [n]."""
    metric: Tensor
    """Index in METRICS of the query that it belongs to, long [n]."""
    record: Tensor
    """Place of its record, long [n]."""

    @classmethod
    def joined(cls, parts: "Sequence[AnswerTokens]") -> "AnswerTokens":
        """Return the tokens of several parts, at least one, in order."""
        columns = [[getattr(part, f.name) for part in parts] for f in dataclasses.fields(cls)]
        return cls(*map(torch.cat, columns))


@dataclass(frozen=True)
class TokenSums:
    """Losses and hits of answer tokens, summed by metric, each in its part of a whole batch."""

    loss: Tensor
    """Of the answer tokens, over their number in the whole batch, nats [m]; with gradient."""
    right: Tensor
    """Of those that are right, likewise, [m]."""

    @classmethod
    def of(cls, answers: AnswerTokens, counts: Tensor) -> Self:
        """Return the sums of some answer tokens.

        Args:
            answers: of a part of the batch, or of all of it.
            counts: answer tokens of the whole batch by metric, in all processes, [m].
        """
        nothing = torch.zeros(len(METRICS), device=answers.loss.device)
        each = counts.to(nothing.device).clamp(min=1)
        loss = nothing.index_add(0, answers.metric, answers.loss)
        right = nothing.index_add(0, answers.metric, answers.right.float())
        return cls(loss / each, right / each)

    def total(self, weights: Mapping[str, float]) -> Tensor:
        """Return the losses of metrics that have a weight, weighted and summed."""
        return torch.stack(
            [weights[metric] * self.loss[place] for metric, place in _places(weights).items()]
        ).sum()

    @property
    def values(self) -> Tensor:
        """Losses and hits without gradient, [2, m]."""
        return torch.stack([self.loss.detach(), self.right])


def losses_of(
    total: Tensor,
    values: Tensor,
    weights: Mapping[str, float],
    processes: Processes | None = None,
) -> StepLosses:
    """Return the losses of the batch of all processes.

    Args:
        total: this process's part of it.
        values: of `TokenSums`, added up over this process's parts of the batch, [2, m].
        weights: metric -> weight; those of weight 0 are left out.
        processes: that share the batch; None is this one alone.
    """
    losses, shares = (processes.total(values) if processes else values).tolist()
    places = _places(weights)
    return StepLosses(
        total,
        {metric: losses[place] for metric, place in places.items()},
        {metric: shares[place] for metric, place in places.items()},
    )


def step_losses(
    answers: AnswerTokens, weights: Mapping[str, float], processes: Processes | None = None
) -> StepLosses:
    """Return the losses of the batch of all processes, from one's answer tokens.

    Every token counts alike, whichever process it is in: gradients are those of one process, which
    means of the processes' means would not be.

    Args:
        answers: of the process's share of the batch.
        weights: metric -> weight; those of weight 0 are left out.
        processes: that share the batch; None is this one alone.
    """
    counts = torch.bincount(answers.metric, minlength=len(METRICS)).float()
    sums = TokenSums.of(answers, processes.total(counts) if processes else counts)
    return losses_of(sums.total(weights), sums.values, weights, processes)


def _places(weights: Mapping[str, float]) -> dict[str, int]:
    return {metric: place for place, metric in enumerate(METRICS) if weights[metric]}


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
    divergence = token_divergence(answer_logits(plain, labels)[0], answer_logits(edited, labels)[0])
    return divergence.mean() if len(divergence) else torch.zeros((), device=edited.device)


def token_divergence(plain: Tensor, edited: Tensor) -> Tensor:
    """Return KL(plain || edited) of each row of logits, in nats, [n].

    Args:
        plain: logits of the unedited model, [n, v].
        edited: logits of the edited model, [n, v].
    """
    before = functional.log_softmax(plain.float(), -1)
    after = functional.log_softmax(edited.float(), -1)
    divergence: Tensor = (before.exp() * (before - after)).sum(-1)
    return divergence
