"""Two files that change as one: whoever reads, whenever a writer was killed, sees old or new."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.storage import described_tensors
from easyedit_dualedit.storage.described_tensors import DescribedTensors
from easyedit_dualedit.storage.folder_lock import LOCK_FILE, locked

FILES = DescribedTensors(
    "things", "kept", "things.json", "things.safetensors", "sha", 64, missing="", remedy="copy it"
)


def write(folder: Path, number: int) -> None:
    FILES.write(folder, {"number": number}, {"x": torch.full((3,), float(number))})


def read(folder: Path) -> tuple[int, float]:
    values, tensors = FILES.read(folder)
    return values["number"], float(tensors["x"][0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for the end of the process: nothing of the writer's own tidies up."""


def killed_at(patch: pytest.MonkeyPatch, folder: Path, moves: int) -> None:
    """Write a new pair, with an end after some renames."""
    made: list[Any] = []
    replace = os.replace

    def counted(source: Any, target: Any) -> None:
        if len(made) == moves:
            raise Killed
        made.append(target)
        replace(source, target)

    patch.setattr(described_tensors.os, "replace", counted)
    # What a killed process leaves: its temporary folder, and its lock's file.
    patch.setattr(described_tensors.tempfile, "TemporaryDirectory", Staying)
    with pytest.raises(Killed):
        write(folder, 2)
    patch.undo()
    (folder / LOCK_FILE).touch()


class Staying:
    """A temporary folder that nobody removes."""

    def __init__(self, dir: Path, prefix: str):  # noqa: A002
        self.path = Path(dir, f"{prefix}left")

    def __enter__(self) -> str:
        self.path.mkdir()
        return str(self.path)

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("moves", "seen"), [(0, 1), (1, 2)])
def test_a_writer_that_was_killed_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int, seen: int
):
    write(tmp_path, 1)
    killed_at(monkeypatch, tmp_path, moves)
    assert read(tmp_path) == (seen, float(seen))
    assert names(tmp_path) == ["things.json", "things.safetensors"], "put in order by the reader"
    assert json.loads((tmp_path / "things.json").read_text())["number"] == seen
    assert read(tmp_path) == (seen, float(seen))


def test_a_writer_puts_in_order_what_another_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)
    killed_at(monkeypatch, tmp_path, 1)
    write(tmp_path, 3)
    assert names(tmp_path) == ["things.json", "things.safetensors"]
    assert read(tmp_path) == (3, 3.0)


def test_a_reader_removes_the_lock_of_a_writer_that_is_no_more_and_no_other(tmp_path: Path):
    write(tmp_path, 1)
    whole = names(tmp_path)
    (tmp_path / LOCK_FILE).touch()  # killed when all was saved, before it gave the lock back
    assert read(tmp_path) == (1, 1.0) and names(tmp_path) == whole
    with locked(tmp_path):
        assert read(tmp_path) == (1, 1.0) and (tmp_path / LOCK_FILE).exists()
    assert names(tmp_path) == whole


def test_a_reader_beside_a_writer_is_not_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, 1)
    killed_at(monkeypatch, tmp_path, 1)
    with locked(tmp_path):
        seen: list[Any] = []
        reader = threading.Thread(target=lambda: seen.extend([read(tmp_path), names(tmp_path)]))
        reader.start()
        reader.join()
    assert seen[0] == (2, 2.0)
    assert ".saving-left" in seen[1], "the writer is still at work, for all the reader knows"


@pytest.mark.parametrize("place", [-1, -9, "number"])
def test_one_bit_of_damage_after_a_kill_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int | str
):
    write(tmp_path, 1)
    killed_at(monkeypatch, tmp_path, 1)
    path = tmp_path / "things.safetensors"
    content = bytearray(path.read_bytes())
    content[place if isinstance(place, int) else content.index(place.encode())] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArchiveError, match="damaged"):
        read(tmp_path)


def test_tensors_of_another_folder_are_refused_where_they_say_nothing(tmp_path: Path):
    from safetensors.torch import save_file

    write(tmp_path, 1)
    save_file({"x": torch.zeros(3)}, tmp_path / "things.safetensors")
    with pytest.raises(ArchiveError, match="is not the one in things.json"):
        read(tmp_path)


def test_the_same_tensors_make_the_same_bytes(tmp_path: Path):
    tensors = {"x": torch.arange(3.0), "y": torch.ones(2, 2)}
    values = {"a": 'quotes " and \\', "b": "Ä\n", "c": [1.5, None]}
    made = set()
    for _ in range(12):
        FILES.write(tmp_path, values, tensors, indent=1)
        made.add((tmp_path / FILES.numbers).read_bytes())
        found, read_again = FILES.read(tmp_path)
        assert {name: found[name] for name in values} == values
        assert all(torch.equal(read_again[name], each) for name, each in tensors.items())
    assert len(made) == 1
