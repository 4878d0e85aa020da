"""How many rows of a forward the memory that is free has room for."""

import gc
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_MEMORY = Path("/proc/meminfo")
_KIBIBYTE = 1024

_SHARE = 0.5
"""Of the free memory that a forward may take: other work needs some, and this is an estimate."""

_STATES = 20
"""Vectors of the hidden size that a token takes while a layer runs: its states, those of attention
and the wider ones behind it; layers run one after the other, and nothing is kept for gradients."""

_SOFTMAX = 4
"""Bytes of a number in the softmax of attention that is written out."""


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device, in bytes; None where nobody tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "cpu":
        with suppress(OSError, ValueError):
            for line in _MEMORY.read_text(encoding="ascii").splitlines():
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * _KIBIBYTE
    return None


def bytes_of_row(model: nn.Module, length: int, inputs: dict[str, Any]) -> int:
    """Return about how many bytes a row takes in a forward without gradients.

    Args:
        model: with a transformers config.
        length: tokens of the row, padding included.
        inputs: of a batch with such rows; the first axis of `input_ids` counts them.
    """
    config: Any = model.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, heads = int(text.hidden_size), int(getattr(text, "num_attention_heads", 1))
    size = next(model.parameters()).element_size()
    taken = _STATES * length * width * size
    # A mask of the row; attention that is written out has a matrix of that size for every head.
    each = size
    if getattr(text, "_attn_implementation", None) == "eager":
        each += heads * (size + _SOFTMAX)
    taken += each * length**2
    rows = len(inputs["input_ids"])
    others = (v for v in inputs.values() if isinstance(v, Tensor) and v.is_floating_point())
    return taken + _STATES * sum(value.nbytes for value in others) // rows


def rows_that_fit(model: nn.Module, device: torch.device, inputs: dict[str, Any], most: int) -> int:
    """Return how many rows like those of a batch may share a forward: from 1 to `most`.

    Args:
        model: that reads them.
        device: where.
        inputs: of the batch.
        most: is enough to be fast.
    """
    free = free_bytes(device)
    if free is None:
        return most
    row = bytes_of_row(model, inputs["input_ids"].shape[1], inputs)
    return max(1, min(most, int(free * _SHARE) // row))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "not enough memory" in str(error)
    )


def give_back(device: torch.device) -> None:
    """Give back what a forward took that did not end."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
