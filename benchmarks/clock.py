"""Times pieces of code, counts their arithmetic, and relates the two."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Time = tuple[float, float]
"""Milliseconds of the processor, and on the wall."""


@dataclass(frozen=True)
class Clock:
    """Times what runs on a device; work that the device still has to do is waited for."""

    device: torch.device

    @property
    def is_gpu(self) -> bool:
        """Whether the processor only gives orders, so that the wall alone tells the time."""
        return self.device.type == "cuda"

    def now(self) -> Time:
        """Return the time once all that was ordered is done."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)
        return 1e3 * time.process_time(), 1e3 * time.perf_counter()

    def since(self, start: Time) -> Time:
        """Return the time that has passed."""
        cpu, wall = self.now()
        return cpu - start[0], wall - start[1]

    def time(self, call: Callable[[], Any]) -> Time:
        """Return how long one call takes."""
        start = self.now()
        call()
        return self.since(start)

    def busy(self, time: Time) -> float:
        """Return the milliseconds of a time in which work was done, whoever else ran meanwhile."""
        return time[1] if self.is_gpu else time[0]

    def rate(self, dtype: torch.dtype) -> float:
        """Return how many GFLOP a second one large matrix product reaches."""
        side = 8192 if self.is_gpu else 2048
        factor = torch.randn(side, side, device=self.device).to(dtype)
        times = [self.busy(self.time(lambda: factor @ factor)) for _ in range(9)]
        return round(2 * side**3 / statistics.median(times) / 1e6, 1)

    def figures(
        self, times: Sequence[Time], gflop: float, rate: float, samples: int
    ) -> dict[str, float]:
        """Return what the table of times says of one kind of work.

        Args:
            times: of each run.
            gflop: arithmetic of a run.
            rate: GFLOP a second that one large product reaches.
            samples: records that a run deals with.
        """
        busy = statistics.median(self.busy(time) for time in times)
        return {
            "runs": len(times),
            **medians_of(times),
            "gflop": gflop,
            "least_ms": round(1e3 * gflop / rate, 2),
            "limit_percent": round(1e5 * gflop / rate / busy, 1),
            "samples_per_second": round(1e3 * samples / busy, 3),
        }


def typical(times: Sequence[Time]) -> Time:
    """Return the median of times."""
    cpu, wall = zip(*times, strict=True)
    return statistics.median(cpu), statistics.median(wall)


def medians_of(times: Sequence[Time]) -> dict[str, float]:
    """Return the medians of times, and the least that the processor took."""
    cpu, wall = typical(times)
    least = min(time[0] for time in times)
    return {"cpu_ms": round(cpu, 2), "wall_ms": round(wall, 2), "least_cpu_ms": round(least, 2)}


def gflop_of(call: Callable[[], Any]) -> float:
    """Return how many GFLOP a call takes: matrix products, attention, convolutions, and back."""
    with FlopCounterMode(display=False) as counter:
        call()
    return round(float(counter.get_total_flops()) / 1e9, 2)
