"""One process at a time changes a folder, and a killed one stops nobody."""

import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from forked import started

from easyedit_dualedit.errors import LockError
from easyedit_dualedit.storage.folder_lock import LOCK_FILE, locked, locked_part, locked_whole


def hold(folder: Path, seconds: float) -> None:
    with locked(folder):
        (folder / "held").touch()
        time.sleep(seconds)


def count(folder: Path) -> None:
    """Add one to a number fifty times, as only one process at a time may."""
    path = folder / "number"
    for _ in range(50):
        with locked(folder):
            path.write_text(str(int(path.read_text()) + 1))


def until_held(folder: Path) -> None:
    while not (folder / "held").exists():
        time.sleep(0.01)


def test_processes_take_turns(tmp_path: Path):
    (tmp_path / "number").write_text("0")
    processes = [started(count, tmp_path) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "number").read_text() == "200"
    assert not (tmp_path / LOCK_FILE).exists()


def test_waiting_is_told_and_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    process = started(hold, tmp_path, 60.0)
    until_held(tmp_path)
    try:
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(LockError, match="another process is changing .* within 3 seconds; wait"),
            locked(tmp_path, patience=3.0),
        ):
            pass
        assert "waiting until it is done" in caplog.text
    finally:
        process.kill()
        process.join()
    with locked(tmp_path, patience=0.5):
        pass
    assert not (tmp_path / LOCK_FILE).exists()


def test_a_caller_and_its_callee_hold_one_lock(tmp_path: Path):
    with locked(tmp_path):
        with locked(tmp_path, patience=0.0):
            pass
        assert (tmp_path / LOCK_FILE).exists()
        seen: list[str] = []

        def other() -> None:
            try:
                with locked(tmp_path, patience=0.1):
                    seen.append("entered")
            except LockError:
                seen.append("refused")

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert seen == ["refused"], "another thread is another holder"


def test_the_whole_and_its_parts_exclude_each_other_and_parts_do_not(tmp_path: Path):
    def by_another(how: Any, *arguments: Any) -> str:
        """Return what comes of a lock in another thread, which is another holder."""
        seen: list[str] = []

        def take() -> None:
            try:
                with how(tmp_path, *arguments, patience=0.1):
                    seen.append("entered")
            except LockError:
                seen.append("refused")

        thread = threading.Thread(target=take)
        thread.start()
        thread.join()
        return seen[0]

    with locked_part(tmp_path, "0-of-2"):
        assert by_another(locked_part, "1-of-2") == "entered"
        assert by_another(locked_part, "0-of-2") == "refused"
        assert by_another(locked_whole) == "refused"
        assert by_another(locked_part, "1-of-2") == "entered", "the whole does not wait any longer"
    with locked_whole(tmp_path):
        assert by_another(locked_part, "0-of-2") == "refused"
        assert by_another(locked_whole) == "refused"
    (tmp_path / f"{LOCK_FILE}-of-a-killed-process").touch()
    with locked_whole(tmp_path, patience=0.1):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), locked(tmp_path / "file" / "below"):
        pass
