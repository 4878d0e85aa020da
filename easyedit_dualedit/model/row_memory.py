"""What memory is free or allowed, and what to do when it has run out."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import torch

_MEMORY = Path("/proc/meminfo")
_KIBIBYTE = 1024
_SAID = ("out of memory", "not enough memory", "allocate memory")
"""By PyTorch, where that is no error of a class of its own."""

_ALLOWED: ContextVar[int | None] = ContextVar("allowed", default=None)


@contextmanager
def allowed_memory(size: int | None) -> Iterator[None]:
    """Let this process take so many bytes on its device inside the block; None is what is free."""
    token = _ALLOWED.set(size)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def allowed_bytes() -> int | None:
    """Return the bytes that this process may take on its device; None means what is free."""
    return _ALLOWED.get()


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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there was no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
    )


def give_back(device: torch.device) -> None:
    """Give back what a forward took that did not end."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
