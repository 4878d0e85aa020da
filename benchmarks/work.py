"""Counts the work of a piece of code: what does not depend on how busy a machine is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from easyedit_dualedit.model.backbone import Backbone


@dataclass
class Work:
    """Modules that ran."""

    decoder_layers: int = 0
    """Calls of decoder layers that computed something."""
    frozen_rows: int = 0
    """Rows through the first decoder layer: sequences whose frozen part was computed."""
    lm_head: int = 0
    lm_head_positions: int = 0
    vision: int = 0
    """Pictures through the vision tower."""
    bytes_written: int | None = None
    """That this process sent to storage; None where the system does not tell."""


@contextmanager
def counted(backbone: Backbone) -> Iterator[Work]:
    """Yield the work that the model does inside the block."""
    work = Work()

    def attention(_module: Any, _args: Any, output: Any, *, first: bool) -> None:
        work.decoder_layers += 1
        if first:
            work.frozen_rows += len(output[0])

    def head(_module: Any, args: tuple[Any, ...]) -> None:
        work.lm_head += 1
        work.lm_head_positions += args[0].numel() // args[0].shape[-1]

    def tower(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        work.vision += len(kwargs["pixel_values"] if "pixel_values" in kwargs else _args[0])

    model: Any = backbone.model
    with ExitStack() as stack:
        for index, layer in enumerate(backbone.layers):
            # A layer that is passed over is called, but its attention is not.
            part: Any = layer.self_attn

            def seen(m: Any, a: Any, o: Any, first: bool = index == 0) -> None:
                attention(m, a, o, first=first)

            stack.callback(part.register_forward_hook(seen).remove)
        stack.callback(model.get_output_embeddings().register_forward_pre_hook(head).remove)
        hook = model.model.vision_tower.register_forward_pre_hook(tower, with_kwargs=True)
        stack.callback(hook.remove)
        before = bytes_written()
        yield work
        after = bytes_written()
    if before is not None and after is not None:
        work.bytes_written = after - before


def bytes_written(table: Path = Path("/proc/self/io")) -> int | None:
    """Return how many bytes this process has sent to storage, or None if the system hides it.

    Pipes, to which a warning or a progress bar goes, do not count; nor do files in memory.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    found = dict(line.split(": ", 1) for line in lines)
    return int(found["write_bytes"]) if "write_bytes" in found else None


def kept_for_backward(work: Callable[[], object], model: nn.Module) -> int:
    """Return the bytes that autograd keeps of a piece of code, the model's weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a result that its own node kept would never be let go

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()  # held, since a place that is free again would be counted once for two
    del result
    return sum(kept.values())


def operations_of(work: Callable[[], object]) -> int:
    """Return how many operations on tensors a piece of code runs, views of them included."""
    with _Operations() as operations:
        work()
    return operations.count


def reads_of(work: Callable[[], object]) -> int:
    """Return how often a piece of code waits for the numbers in a tensor: each stops a GPU."""
    with _Reads() as reads:
        work()
    return reads.count


_READING = (
    *("tolist", "item", "numpy", "cpu", "nonzero", "equal", "masked_select", "unique"),
    *("__bool__", "__contains__", "__float__", "__index__", "__int__", "__iter__"),
)
"""Functions of tensors whose outcome, or its shape, the processor has to know."""


class _Reads(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += getattr(func, "__name__", "") in _READING
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
