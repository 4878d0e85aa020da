"""Watches a training: its curves, what it is worth on validation records, its best state, its end.

All that is kept between steps is in `state_dict`, so that a continued training goes on as if it had
never stopped.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import input_device
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.curves import Curves, Line
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.progress import TrainingProgress, peak_gibibytes
from easyedit_dualedit.train.validation import Measured, Validation

logger = logging.getLogger(__name__)

BEST_FOLDER = "best"
LAST_FOLDER = "last"


@dataclass(frozen=True)
class Watching:
    """What is watched of a training."""

    validation: Sequence[Record] = ()
    """Records that are not trained on; none measures nothing."""
    every: int = 500
    """Steps between two validations; one comes before the first step, and one after the last."""
    patience: int = 0
    """Steps without a better state after which the training ends; 0 means never."""
    folder: Path | None = None
    """Where the adapters are saved at each validation: the best in `best/`, these in `last/`."""
    curves: Curves | None = None
    """Where losses are written, and what validation measures."""
    curves_every: int = 50
    """Steps that one line of losses is the mean of."""


class Watch:
    """One training as it is watched."""

    def __init__(
        self,
        plan: Watching,
        editor: DualEditor,
        config: TrainingConfig,
        seen_after: Callable[[int], tuple[str, ...]],
    ):
        """Have seen nothing yet.

        Args:
            plan: what is watched.
            editor: that is trained.
            config: of the training.
            seen_after: returns the targets that so many steps have trained on.
        """
        self._plan, self._editor, self._config = plan, editor, config
        self._seen_after = seen_after
        self._processes = Processes.current()
        self._validation: Validation | None = None
        self._lines = 0
        self._validated = -1
        self._best_step = 0
        self._best: tuple[float, float] | None = None
        self._best_adapters: dict[str, Tensor] = {}
        self._sums = {"loss": [0.0] * len(METRICS), "accuracy": [0.0] * len(METRICS)}
        self._summed = 0
        self._seconds = 0.0
        self._since = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return all that goes on in a continued training."""
        return {
            "validates": bool(self._plan.validation),
            "lines": self._lines,
            "validated": self._validated,
            "best_step": self._best_step,
            "best": self._best,
            "best_adapters": self._best_adapters,
            "sums": self._sums,
            "summed": self._summed,
            "seconds": self._seconds + time.monotonic() - self._since,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self._lines = int(state["lines"])
        self._validated, self._best_step = int(state["validated"]), int(state["best_step"])
        best = state["best"]
        self._best = None if best is None else (float(best[0]), float(best[1]))
        self._best_adapters = dict(state["best_adapters"])
        self._sums = {name: list(map(float, state["sums"][name])) for name in self._sums}
        self._summed, self._seconds = int(state["summed"]), float(state["seconds"])

    def forget_best(self) -> None:
        """Measure anew which state is the best: earlier ones were measured with another gate."""
        if self._best_adapters:
            logger.warning(
                "the gate is another now: the adapters of step %d, the best with the earlier one,"
                " are compared no more",
                self._best_step,
            )
        self._validated, self._best_step = -1, 0
        self._best, self._best_adapters = None, {}

    def begin(self, step: int, records: Sequence[Record], progress: TrainingProgress) -> bool:
        """Get ready once the gate is made, and validate what is not trained yet.

        Args:
            step: done so far.
            records: that are trained on.
            progress: is told what is measured.

        Returns:
            Whether it was measured: a checkpoint is then due.
        """
        plan = self._plan
        if plan.curves is not None and self._processes.is_first:
            plan.curves.begin(self._lines)
            self._lines = plan.curves.count
        if not plan.validation:
            return False
        start = time.monotonic()
        self._validation = Validation(
            self._editor,
            plan.validation,
            records,
            self._config,
            targets=self._editor.training_targets,
            progress=progress.is_shown,
        )
        progress.leave_out(time.monotonic() - start)
        if self._validated < 0:
            self._validate(step, progress)
            return True
        return False

    def after(
        self, step: int, losses: StepLosses, rate: float, norm: float, progress: TrainingProgress
    ) -> bool:
        """Take notice of a step, and validate if it is time.

        Args:
            step: its number, from 1.
            losses: of all processes.
            rate: learning rate that it was taken with.
            norm: of the gradient, before it was clipped.
            progress: is told what is measured.

        Returns:
            Whether it was measured: a checkpoint is then due.
        """
        is_last = step == self._config.steps
        for name, values in (("loss", losses.by_metric), ("accuracy", losses.accuracy)):
            sums = self._sums[name]
            for metric, value in values.items():
                sums[METRICS.index(metric)] += value
        self._summed += 1
        if step % self._plan.curves_every == 0 or is_last:
            self._write(self._training_line(step, losses, rate, norm, progress))
        if self._validation is None or not (is_last or step % self._plan.every == 0):
            return False
        self._validate(step, progress)
        return True

    def is_over(self, step: int) -> bool:
        """Return whether the training ends after so many steps, for its number or for patience."""
        plan = self._plan
        waited = self._validated - self._best_step
        impatient = bool(plan.patience) and plan.validation and waited >= plan.patience
        return step >= self._config.steps or bool(impatient)

    def finish(self, step: int, progress: TrainingProgress) -> None:
        """Give the editor its best adapters back, if they were ever measured."""
        kept = self._best_step if self._best_adapters else step
        self._editor.training_targets = self._seen_after(kept)
        if not self._best_adapters:
            return
        if step < self._config.steps:
            progress.tell(f"ends after step {step}: nothing better since step {self._best_step}")
        if self._best_step != step:
            progress.tell(f"the adapters of step {self._best_step} are the best")
        self._editor.adapters.load_state_dict(self._best_adapters)

    def _validate(self, step: int, progress: TrainingProgress) -> None:
        if self._validation is None:
            return
        start = time.monotonic()
        measured = self._validation.measure()
        self._validated = step
        standing = (measured.score, -measured.total_loss)
        is_best = self._best is None or standing > self._best
        if is_best:
            self._best, self._best_step = standing, step
            weights = self._editor.adapters.state_dict()
            self._best_adapters = {
                name: each.detach().cpu().clone() for name, each in weights.items()
            }
        self._editor.training_targets = self._seen_after(step)
        if self._plan.folder is not None and self._processes.is_first:
            for name in [LAST_FOLDER, *([BEST_FOLDER] if is_best else [])]:
                self._editor.save(self._plan.folder / name)
        seconds = time.monotonic() - start
        progress.leave_out(seconds)
        self._write(
            {
                "step": step,
                "part": "validation",
                **self._validation.about,
                "loss": {"total": measured.total_loss},
                "average": measured.score,
                "gated": measured.gated,
                "adapters": measured.adapters,
                "losses": measured.loss,
                "is_best": is_best,
                "seconds": seconds,
            }
        )
        progress.tell(f"validation at step {step}: {_told(measured)}" + ", best" * is_best)

    def _training_line(
        self, step: int, losses: StepLosses, rate: float, norm: float, progress: TrainingProgress
    ) -> Line:
        means = {
            name: {
                metric: self._sums[name][METRICS.index(metric)] / self._summed
                for metric in losses.by_metric
            }
            for name in self._sums
        }
        weights = self._config.weights
        total = sum(weights[metric] * loss for metric, loss in means["loss"].items())
        line = {
            "step": step,
            "part": "training",
            "loss": {"total": total, **means["loss"]},
            "accuracy": means["accuracy"],
            "learning_rate": rate,
            "gradient_norm": norm,
            "seconds": self._seconds + time.monotonic() - self._since,
            "samples_per_second": progress.samples_per_second,
            "peak_gibibytes": peak_gibibytes(input_device(self._editor.backbone.model)),
        }
        self._sums = {name: [0.0] * len(METRICS) for name in self._sums}
        self._summed = 0
        return line

    def _write(self, line: Line) -> None:
        if self._plan.curves is not None and self._processes.is_first:
            self._plan.curves.add(line)
            self._lines = self._plan.curves.count


def _told(measured: Measured) -> str:
    shares = ", ".join(
        f"{metric.replace('_', ' ')} {share:.1%}" for metric, share in measured.gated["all"].items()
    )
    return f"{shares}, loss {measured.total_loss:.3f}"
