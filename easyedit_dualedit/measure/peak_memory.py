"""How much memory some work takes at its peak."""

import ctypes
from contextlib import suppress
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_KIBIBYTE = 1024


class PeakMemory:
    """The peak of what is taken since it was made: of a GPU's memory, or of a process on the CPU.

    What the process held before does not count: the imports, and what earlier work left behind.
    """

    def __init__(self, device: str):
        """Start to watch.

        Args:
            device: "cpu", "cuda:0", ...
        """
        self._device = torch.device("cuda" if device == "auto" else device)
        self._held = 0
        self.restart()
        self._held = self.read() or 0

    def restart(self) -> None:
        """Forget the peak so far, but not what was held when this was made."""
        if self._device.type == "cuda":
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
            return
        _give_back()
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:  # no Linux, or not allowed: the peak is then that of the whole run
            return

    def read(self) -> int | None:
        """Return the peak so far in bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            devices = range(torch.cuda.device_count())
            peak = sum(torch.cuda.max_memory_allocated(device) for device in devices)
            return peak - self._held
        try:
            lines = _STATUS.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        for line in lines:
            if line.startswith("VmHWM:"):
                return max(0, int(line.split()[1]) * _KIBIBYTE - self._held)
        return None


def _give_back() -> None:
    """Have the allocator give free memory back, or it would count as held."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
