"""How much memory some work takes at its peak."""

from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_KIBIBYTE = 1024


class PeakMemory:
    """The peak since it was made: of a GPU's memory, or of the whole process on the CPU."""

    def __init__(self, device: str):
        """Start to watch.

        Args:
            device: "cpu", "cuda:0", ...
        """
        self._device = torch.device("cuda" if device == "auto" else device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
        except OSError:  # no Linux, or not allowed: the peak is then that of the whole run
            return

    def read(self) -> int | None:
        """Return the peak so far in bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            devices = range(torch.cuda.device_count())
            return max(torch.cuda.max_memory_allocated(device) for device in devices)
        try:
            lines = _STATUS.read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        for line in lines:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * _KIBIBYTE
        return None
