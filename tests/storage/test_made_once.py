"""Each file is made by one process, whatever becomes of that process."""

import os
import time
from pathlib import Path

import pytest
from forked import started

from easyedit_dualedit.errors import LockError
from easyedit_dualedit.storage.folder_lock import locked
from easyedit_dualedit.storage.made_once import made_once


def paths_in(folder: Path, count: int) -> list[Path]:
    return [folder / f"{place}.txt" for place in range(count)]


def until(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def share(folder: Path, count: int, others: int) -> None:
    """Make files slowly once the others are there, noting in each which process made it."""
    paths = paths_in(folder, count)
    (folder / f"here-{os.getpid()}").touch()
    while len(list(folder.glob("here-*"))) <= others:
        time.sleep(0.01)

    def make(place: int) -> None:
        time.sleep(0.02)
        with paths[place].open("x") as file:  # another time would fail
            file.write(str(os.getpid()))

    made_once(paths, make)


def make_and_stop(folder: Path) -> None:
    """Hold the lock of the first file, and end without it."""
    with locked(folder, name=".0.txt.lock"):
        (folder / "held").touch()
        until(folder / "enough")
        os._exit(1)


def test_processes_share_the_files(tmp_path: Path):
    processes = [started(share, tmp_path, 30, 2) for _ in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    makers = [path.read_text() for path in paths_in(tmp_path, 30)]
    assert len(set(makers)) > 1
    left = {path.name for path in tmp_path.iterdir() if not path.match("here-*")}
    assert left == {path.name for path in paths_in(tmp_path, 30)}


def test_what_another_process_makes_is_left_to_it_and_made_if_it_dies(tmp_path: Path):
    process = started(make_and_stop, tmp_path)
    until(tmp_path / "held")
    paths, made, told = paths_in(tmp_path, 3), [], []

    def make(place: int) -> None:
        made.append(place)
        paths[place].touch()
        if place == 2:
            (tmp_path / "enough").touch()

    made_once(paths, make, seen=told.append)
    process.join()
    assert made == told == [1, 2, 0]
    made_once(paths, make, seen=told.append)
    assert made == [1, 2, 0] and told == [1, 2, 0, 0, 1, 2]


def test_a_process_that_does_not_end_is_one_clear_error(tmp_path: Path):
    process = started(make_and_stop, tmp_path)
    until(tmp_path / "held")
    paths = paths_in(tmp_path, 2)
    with pytest.raises(LockError, match="another process"):
        made_once(paths, lambda place: paths[place].touch(), patience=0.1)
    (tmp_path / "enough").touch()
    process.join()
    assert paths[1].is_file() and not paths[0].is_file()
