"""Peak memory: what was taken since it was made, and no less."""

from pathlib import Path

import pytest
import torch

from easyedit_dualedit.measure import peak_memory as peak
from easyedit_dualedit.measure.peak_memory import PeakMemory

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's own peak"
)


@needs_linux
def test_memory_that_was_given_back_counts():
    watched = PeakMemory("cpu")
    before = watched.read()
    torch.ones(64 * 2**20).sum()
    after = watched.read()
    assert before is not None and after is not None
    assert after - before > 200 * 2**20


@needs_linux
def test_memory_taken_before_it_was_made_does_not_count():
    torch.ones(64 * 2**20).sum()
    earlier = PeakMemory("cpu")
    first = earlier.read()
    torch.ones(64 * 2**20).sum()
    high = earlier.read()
    low = PeakMemory("cpu").read()
    assert first is not None and high is not None and low is not None
    assert high - low > 200 * 2**20


@needs_linux
def test_what_was_held_before_does_not_count_after_a_restart():
    held = torch.ones(64 * 2**20)
    watched = PeakMemory("cpu")
    torch.ones(32 * 2**20).sum()
    watched.restart()
    low = watched.read()
    taken = torch.ones(32 * 2**20)
    high = watched.read()
    assert low is not None and high is not None
    assert low < 64 * 2**20, "neither what was held nor the peak before"
    assert 100 * 2**20 < high < 200 * 2**20
    assert len(held) > len(taken)


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(peak, "_CLEAR", tmp_path / "folder" / "none")
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "none")
    assert PeakMemory("cpu").read() is None
