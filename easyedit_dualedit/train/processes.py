"""The processes that train one editor together, each on its share of every batch."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, distributed, nn

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.train.losses import AnswerTokens, StepLosses

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """One of several processes; a process alone is the first of one, and all is as it is there."""

    place: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Self:
        """Return this process among those of torch.distributed's group; alone if there is none."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and shows progress."""
        return self.place == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items of this process; every item is one process's."""
        return items[self.place :: self.count]

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all processes, without gradient."""
        if self.count == 1:
            return values.detach()
        values = values.detach().clone()
        distributed.all_reduce(values)
        return values

    def losses(self, answers: AnswerTokens, weights: Mapping[str, float]) -> StepLosses:
        """Return the losses of the batch of all processes, from this one's answer tokens.

        Args:
            answers: of this process's share of the batch.
            weights: metric -> weight; those of weight 0 are left out.
        """
        nothing = torch.zeros(len(METRICS), device=answers.loss.device)
        ones = torch.ones_like(answers.loss)
        sums = nothing.index_add(0, answers.metric, answers.loss)
        right = nothing.index_add(0, answers.metric, answers.right.float())
        counts = self.total(nothing.index_add(0, answers.metric, ones)).clamp(min=1)
        means = sums / counts
        values, shares = self.total(torch.stack([means.detach(), right / counts])).tolist()
        places = {metric: place for place, metric in enumerate(METRICS) if weights[metric]}
        return StepLosses(
            torch.stack([weights[metric] * means[place] for metric, place in places.items()]).sum(),
            {metric: values[place] for metric, place in places.items()},
            {metric: shares[place] for metric, place in places.items()},
        )

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients in all processes."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # no query of this process reached it
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values."""
        if self.count == 1:
            return
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)


@contextmanager
def joined(backend: str) -> Iterator[Processes]:
    """Yield this process among those that `torchrun` has started, as one group inside the block.

    Args:
        backend: of torch.distributed, "gloo" on processors and "nccl" on GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield Processes.current()
        return
    distributed.init_process_group(backend)
    try:
        yield Processes.current()
    finally:
        distributed.destroy_process_group()
