"""Counts the work of a piece of code: what does not depend on how busy a machine is."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.backbone import Backbone


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
        yield work


def kept_for_backward(work: Callable[[], object], model: nn.Module) -> int:
    """Return the bytes that autograd keeps of a piece of code, the model's weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()  # held, since a place that is free again would be counted once for two
    del result
    return sum(kept.values())
