"""Memory: how much there is, and how much a process has had at most."""

import resource
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch


def free_bytes(device: torch.device) -> int:
    """Return how many bytes can be had on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def peak_mib(device: torch.device) -> float:
    """Return the most memory that this process has had, on a GPU that of tensors."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    # A process counts its parent's memory in ru_maxrss, but not in VmHWM.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
