"""Peak memory: what was taken since it was made, and no less."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from easyedit_dualedit.measure import peak_memory as peak
from easyedit_dualedit.measure.peak_memory import PeakMemory

needs_linux = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's own peak"
)


@pytest.fixture
def kept_heap() -> Iterator[None]:
    """Have the C library's heap keep 700 MiB that are free, as a long run leaves it."""
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        pytest.skip("another C library")
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    # One of 31 MiB given back: what is smaller is taken from the heap from now on.
    library.free(library.malloc(31 * 2**20))
    parts = [library.malloc(30 * 2**20) for _ in range(24)]
    above = library.malloc(2**20)
    for part in parts:
        library.free(part)
    yield
    library.free(above)


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


@needs_linux
@pytest.mark.usefixtures("kept_heap")
def test_what_the_heap_keeps_of_the_work_before_does_not_count_after_a_restart():
    watched = PeakMemory("cpu")
    torch.ones(32 * 2**20).sum()
    watched.restart()
    low = watched.read()
    taken = torch.ones(32 * 2**20)
    high = watched.read()
    assert low is not None and high is not None
    assert low < 64 * 2**20
    assert 100 * 2**20 < high < 200 * 2**20
    assert len(taken)


def test_a_system_that_does_not_tell_gives_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(peak, "_CLEAR", tmp_path / "folder" / "none")
    monkeypatch.setattr(peak, "_STATUS", tmp_path / "none")
    assert PeakMemory("cpu").read() is None
