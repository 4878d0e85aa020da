"""Tries one thing after another: each is caught, timed and told of, and none ends the others."""

import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from benchmarks.clock import Clock

State = Literal["passed", "failed", "skipped"]

Trial = Callable[[], str | None]
"""Does what is tried; returns a remark, or None. What it raises is why it failed."""


class SkippedError(Exception):
    """What is tried cannot be tried here; the message says why."""


class FailedError(Exception):
    """What is tried gave something else than it should; the message says what."""


@dataclass(frozen=True)
class Outcome:
    """What came of one trial."""

    name: str
    state: State
    remark: str
    seconds: float
    peak_gib: float | None
    """Most memory of tensors on a GPU while it ran; None without one."""


class Trials:
    """Runs trials in order, and keeps their outcomes."""

    def __init__(self, device: torch.device, limit: float, only: str = ""):
        """Try nothing yet.

        Args:
            device: where the trials run.
            limit: seconds after which no further trial begins.
            only: trials whose name does not have this in it are left out.
        """
        self._only = only
        self._clock = Clock(device)
        self._ends = time.monotonic() + limit
        self.outcomes: list[Outcome] = []

    @property
    def failed(self) -> bool:
        """Whether any trial failed."""
        return any(outcome.state == "failed" for outcome in self.outcomes)

    def run_all(self, trials: Mapping[str, Trial]) -> None:
        """Run trials in order."""
        for name, trial in trials.items():
            self.run(name, trial)

    def run(self, name: str, trial: Trial) -> None:
        """Run one trial, and write a line about it."""
        if self._only not in name:
            return
        state: State = "passed"
        device = self._clock.device
        gc.collect()
        if self._clock.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        start = time.monotonic()
        try:
            if start > self._ends:
                raise SkippedError("no time is left")
            remark = trial() or ""
            self._clock.now()  # an error of the device shows when it is waited for
        except SkippedError as reason:
            state, remark = "skipped", _line(reason)
        except Exception as error:  # whatever it is, the other trials go on
            state, remark = "failed", f"{type(error).__name__}: {_line(error)}"
            if not isinstance(error, FailedError):
                sys.stderr.write(traceback.format_exc())
        seconds = round(time.monotonic() - start, 1)
        peak = torch.cuda.max_memory_allocated(device) / 2**30 if self._clock.is_gpu else None
        outcome = Outcome(name, state, remark, seconds, None if peak is None else round(peak, 1))
        self.outcomes.append(outcome)
        sys.stdout.write(f"{state:8}{seconds:7.1f} s  {name}: {remark}\n")
        sys.stdout.flush()

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the outcomes as plain values."""
        return [asdict(outcome) for outcome in self.outcomes]


def table(outcomes: Sequence[dict[str, Any]]) -> str:
    """Return outcomes as a Markdown table."""
    lines = ["| tried | outcome | remark | seconds | peak, GiB |", "|---|---|---|---|---|"]
    for each in outcomes:
        peak = "-" if each["peak_gib"] is None else each["peak_gib"]
        remark = each["remark"].replace("|", "\\|")
        lines.append(
            f"| {each['name']} | {each['state']} | {remark} | {each['seconds']} | {peak} |"
        )
    return "\n".join(lines) + "\n"


def require(holds: bool, otherwise: str) -> None:
    """Raise unless something holds.

    Raises:
        FailedError: with the message.
    """
    if not holds:
        raise FailedError(otherwise)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
