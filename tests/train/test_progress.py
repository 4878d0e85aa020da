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


def test_without_a_terminal_a_line_a_minute_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    now = {"seconds": 0.0}
    monkeypatch.setattr("easyedit_dualedit.train.progress.time.monotonic", lambda: now["seconds"])
    progress = TrainingProgress(100, 1000, 4, device=torch.device("cpu"), shown=True)
    for _ in range(100):
        now["seconds"] += 1.5
        progress.step({"reliability": 0.5, "text_generality": 0.25}, 4)
    told, *lines = capfd.readouterr().err.splitlines()
    assert told == "training: records at once: 4" and len(lines) == 2
    assert lines[0].startswith("training: step 140 of 1000, 22 min left, 2.7 samples/s, ")
    assert lines[0].endswith(" GiB, loss 0.750")
