"""How far a training is, for whoever waits: a bar on a terminal, else a line a minute."""

import sys
import time
from collections.abc import Mapping

import torch
from tqdm import tqdm

SECONDS_A_LINE = 60.0
_GIBIBYTE = 2**30
_KIBIBYTE = 2**10


class TrainingProgress:
    """Shows step, losses, time left, samples a second and peak memory."""

    def __init__(self, first: int, steps: int, samples: int, *, device: torch.device, shown: bool):
        """Show nothing yet.

        Args:
            first: steps that an earlier process has done.
            steps: of the whole training.
            samples: records a step.
            device: of the model.
            shown: whether anything is shown at all.
        """
        self._first, self._step, self._steps = first, first, steps
        self._samples, self._device = samples, device
        self._is_terminal = sys.stderr.isatty()
        self.is_shown = shown
        """Whether anything is shown at all."""
        self._bar = tqdm(
            initial=first,
            total=steps,
            desc="training",
            unit="step",
            disable=not (shown and self._is_terminal),
        )
        self._began = self._told = time.monotonic()
        self._elsewhere = 0.0
        self._before_steps = 0.0
        self._at_once = 0

    def step(self, losses: Mapping[str, float], at_once: int) -> None:
        """Count a step.

        Args:
            losses: by metric, in nats.
            at_once: records of this process that ran at once; told when it changes.
        """
        self._step += 1
        if at_once != self._at_once:
            self._at_once = at_once
            self.tell(f"records at once: {at_once}")
        self._bar.update()
        rate = f"{self.samples_per_second:.1f} samples/s, {peak_gibibytes(self._device):.1f} GiB"
        if self._is_terminal:
            shown = {metric: f"{loss:.3f}" for metric, loss in losses.items()}
            self._bar.set_postfix_str(f"{rate}, " + ", ".join(f"{n}={v}" for n, v in shown.items()))
        elif self.is_shown and time.monotonic() - self._told >= SECONDS_A_LINE:
            self._told = time.monotonic()
            self.tell(
                f"step {self._step} of {self._steps}, {_spell(self.seconds_left)} left, {rate},"
                f" loss {sum(losses.values()):.3f}"
            )

    def tell(self, text: str) -> None:
        """Write a line about the training, whatever there is a bar or not."""
        if self.is_shown:
            tqdm.write(f"training: {text}", file=sys.stderr)

    def leave_out(self, seconds: float) -> None:
        """Not count some seconds in which no step was taken."""
        self._elsewhere += seconds
        if self._step == self._first:
            self._before_steps += seconds

    def close(self) -> None:
        """Show no more."""
        self._bar.close()

    @property
    def samples_per_second(self) -> float:
        """Records trained on a second by this process and those beside it, validation left out."""
        seconds = time.monotonic() - self._began - self._elsewhere
        return (self._step - self._first) * self._samples / max(seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Seconds to the last step at the rate so far, with what validation between steps took."""
        done = max(1, self._step - self._first)
        seconds = time.monotonic() - self._began - self._before_steps
        return seconds / done * (self._steps - self._step)


def peak_gibibytes(device: torch.device) -> float:
    """Return the most memory so far in GiB: of the GPU's allocator, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIBIBYTE
    try:
        import resource
    except ImportError:  # no Unix
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else _KIBIBYTE) / _GIBIBYTE


def _spell(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"
