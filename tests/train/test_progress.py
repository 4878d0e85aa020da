"""What is said of a training under way: how long it takes yet."""

import pytest
import torch

from easyedit_dualedit.train import progress
from easyedit_dualedit.train.progress import TrainingProgress


def test_what_came_before_the_first_step_is_no_part_of_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
):
    """A validation before the first step comes once; those between steps come again."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    bar = TrainingProgress(0, 10, 4, device=torch.device("cpu"), shown=False)
    now = 600.0
    bar.leave_out(600.0)
    now = 602.0
    bar.step({"reliability": 1.0}, 4)
    assert bar.seconds_left == pytest.approx(18)
    assert bar.samples_per_second == pytest.approx(2)
    now = 606.0
    bar.leave_out(4.0)
    now = 608.0
    bar.step({"reliability": 1.0}, 4)
    assert bar.seconds_left == pytest.approx(8 / 2 * 8)
    assert bar.samples_per_second == pytest.approx(2)
