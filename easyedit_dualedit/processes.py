"""The processes that `torchrun` or `accelerate launch` has started for one piece of work.

Accelerate finds the launcher's environment, the device of each process and what they talk through.
Sums are made in place by torch: what Accelerate offers for that copies every gradient first.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, distributed, nn

from easyedit_dualedit.files import digest_of, write_text

Item = TypeVar("Item", covariant=True)

_LONGEST_WAIT = timedelta(days=7)
"""For the slowest process; the default, half an hour, is less than a method takes to train."""

_APART: ContextVar[bool] = ContextVar("apart", default=False)


@dataclass(frozen=True)
class Processes:
    """One of several processes; a process alone is the first of one, and all is as it is there."""

    place: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Self:
        """Return this process among those of torch.distributed's group; alone if there is none."""
        if distributed.is_available() and distributed.is_initialized() and not _APART.get():
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

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every parameter the sum of its gradients in all processes.

        One that no query of any process has reached is left without, as a single process leaves it.
        """
        if self.count == 1:
            return
        every = list(parameters)
        if not every:
            return
        reached = torch.tensor([float(each.grad is not None) for each in every])
        reached = self.total(reached.to(every[0].device))
        for parameter, times in zip(every, reached.tolist(), strict=True):
            if not times:
                continue
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
    def first_alone(self) -> Iterator[None]:
        """Have the first process leave the block before any other enters it."""
        if self.count > 1 and not self.is_first:
            distributed.barrier()
        yield
        if self.count > 1 and self.is_first:
            distributed.barrier()

    def bring_together(self, folder: Path, pattern: str, made: Iterable[str] = ()) -> None:
        """Give the first process the text files of all; returns when all processes are there.

        Those of one machine write into one folder, and nothing is sent.

        Args:
            folder: of the same name on every machine.
            pattern: of the files in it, as `Path.glob` takes it.
            made: those that this process has just written, by their paths in the folder: the first
                process may have files of these names from before.
        """
        if self.count == 1:
            return
        distributed.barrier()  # all have written
        own = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob(pattern))}
        held: list[Any] = [None]
        if self.is_first:
            held = [{name: digest_of(path) for name, path in own.items()}]
        distributed.broadcast_object_list(held, 0)
        new, there = set(made), held[0]
        lacking = {
            name: path.read_text("utf-8")
            for name, path in own.items()
            if name not in there or (name in new and there[name] != digest_of(path))
        }
        sent: list[Any] = [None] * self.count
        distributed.all_gather_object(sent, lacking)
        if self.is_first:
            for name, text in (item for part in sent for item in part.items()):
                write_text(folder / name, text)


@contextmanager
def joined(*, cpu: bool) -> Iterator[tuple[Processes, str | None]]:
    """Yield this process among those that a launcher has started, as one group inside the block.

    Args:
        cpu: whether the work is for the processor, whatever devices there are.

    Yields:
        The process, and its device where there are several and each has a device of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        yield Processes.current(), None
        return
    # It takes a second, and is needed by several processes only.
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    try:
        yield Processes.current(), None if state.device.type == "cpu" else str(state.device)
    finally:
        distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def by_itself() -> Iterator[None]:
    """Let this process work inside the block as if it were alone, a training included."""
    token = _APART.set(True)
    try:
        yield
    finally:
        _APART.reset(token)
