"""Many processes write to one folder, others read: nothing is lost, nothing refused.

`--writing-seconds 30` lets them write for longer.
"""

import time
from pathlib import Path

import pytest
import torch
from forked import started

from easyedit_dualedit.method.edit_file import EditFile, EditsOwner
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.packing import Packed
from easyedit_dualedit.method.stored_edit import PackedProjection, Provenance, StoredEdit

OWNER = EditsOwner(ModelFingerprint({"model_type": "none"}), "adapters", "cosine", "float32")
WRITERS = 8


def edit(name: str) -> StoredEdit:
    part = PackedProjection(*(Packed(torch.ones(2, 3, 4)) for _ in range(2)))
    about = Provenance("", f"What is {name}?", "a", ())
    return StoredEdit(name, about, torch.ones(4), {"text": part}, ())


def write(folder: Path, writer: int, seconds: float) -> None:
    """Add edits one by one, and count them in a file of this writer's own."""
    end = time.monotonic() + seconds
    made = 0
    while time.monotonic() < end:
        name = f"{writer}-{made}"

        def added(there: EditFile | None, name: str = name) -> EditFile:
            before = () if there is None else there.edits
            return EditFile(OWNER, (*before, edit(name)))

        EditFile.change(folder, added)
        made += 1
    (folder.parent / f"made-{writer}").write_text(str(made))


def read(folder: Path, seconds: float) -> None:
    """Read again and again; each time there are as many edits as before, or more."""
    end = time.monotonic() + seconds
    seen = times = 0
    while time.monotonic() < end:
        if EditFile.exists(folder):
            found = len(EditFile.load(folder).edits)  # raises if it is refused
            if found < seen:
                raise AssertionError(f"{found} edits after {seen}")
            seen, times = found, times + 1
    (folder.parent / "read").write_text(str(times))


def test_writers_beside_a_reader_lose_nothing(tmp_path: Path, request: pytest.FixtureRequest):
    folder = tmp_path / "edits"
    seconds = float(request.config.getoption("--writing-seconds"))
    processes = [started(write, folder, writer, seconds) for writer in range(WRITERS)]
    processes.append(started(read, folder, seconds))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    made = [int((tmp_path / f"made-{writer}").read_text()) for writer in range(WRITERS)]
    names = {f"{writer}-{place}" for writer, count in enumerate(made) for place in range(count)}
    assert {each.id for each in EditFile.load(folder).edits} == names
    assert sum(made) >= WRITERS and int((tmp_path / "read").read_text()) > 0
    assert sorted(path.name for path in folder.iterdir()) == ["edits.json", "edits.safetensors"]
