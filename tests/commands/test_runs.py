"""Runs on disk belong to one process at a time; shards of one run to several."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workplace import Called, Workplace

from easyedit_dualedit.commands import runs
from easyedit_dualedit.errors import DataError, LockError
from easyedit_dualedit.storage.folder_lock import locked_part, locked_whole


@contextlib.contextmanager
def held_by_another(how: Any, *arguments: Any) -> Iterator[None]:
    """Let another thread, which is another holder of locks, hold a folder."""
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with how(*arguments):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    entered.wait(60)
    try:
        yield
    finally:
        leave.set()
        holder.join()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_PATIENCE", 0.1)


def lines(work: Workplace) -> dict[str, list[str]]:
    """Return a command line for each command that keeps a run; each ends without a model."""
    hparams = work.hparams(model_name=str(work.folder / "nothing"))
    common = ["--hparams", hparams, "--data", work.data, "--images", work.images]
    output = ["--output", work.folder / "outputs", "--name", "run"]
    made: dict[str, list[object]] = {
        "benchmark": ["benchmark", *common, *output, "--methods", "ft-last-layer"],
        "shard": ["benchmark", *common, *output, "--methods", "ft-last-layer", "--shard", "0/2"],
        "train": ["train", *common, "--output", work.folder / "outputs" / "run"],
        "demo": ["demo", "--count", "1", *output],
        "merge": ["merge", work.folder / "a", "--output", work.folder / "outputs" / "run"],
    }
    return {name: [str(each) for each in line] for name, line in made.items()}


@pytest.mark.parametrize("name", ["benchmark", "shard", "train", "demo", "merge"])
def test_a_run_that_another_process_is_at_is_refused(work: Workplace, call: Any, name: str):
    folder = work.folder / "outputs" / "run"
    with held_by_another(locked_whole, folder):
        called: Called = call(lines(work)[name])
    assert f"another process is changing {folder}" in called.error
    assert not folder.exists() or not list(folder.iterdir())


def test_a_shard_and_the_whole_exclude_each_other_and_shards_do_not(work: Workplace, call: Any):
    folder = work.folder / "outputs" / "run"
    for part, name, is_refused in (
        ("0-of-2", "benchmark", True),
        ("0-of-2", "shard", True),
        ("1-of-2", "shard", False),
    ):
        with held_by_another(locked_part, folder, part):
            called: Called = call(lines(work)[name])
        assert ("another process is changing" in called.err) == is_refused, (part, name)


def test_a_new_folder_is_removed_again_if_nothing_was_written(tmp_path: Path):
    with runs.alone_in(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run").exists()
    with runs.alone_in(tmp_path / "run", part="0-of-2"):
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to"), runs.alone_in(tmp_path / "file" / "a"):
        pass


def test_what_shards_share_is_changed_in_turn(tmp_path: Path):
    tmp_path.joinpath("kept").touch()
    with (
        held_by_another(runs.in_turn, tmp_path),
        pytest.raises(LockError, match="another"),
        runs.in_turn(tmp_path),
    ):
        pass
    with runs.in_turn(tmp_path):
        pass


def test_a_zero_in_a_name_is_one_line(work: Workplace, call: Any):
    for line in (
        work.evaluate("--name", "a\0b"),
        work.train("--output", f"{work.folder}/a\0b"),
        ["edits", "list", "--edits", "a\0b"],
        ["edits", "export", "--edits", "a\0b", "--output", "c"],
    ):
        assert "an argument holds a zero byte" in call(line).error
    assert not (work.folder / "outputs").exists()


def test_an_image_token_that_there_is_not_is_one_line(work: Workplace, call: Any):
    hparams = work.hparams(backbone={"image_token_id": 999999}, lr=0.01, gate_steps=2)
    assert (
        "image_token_id = 999999: the tokenizer has no such"
        in call(work.train("--output", work.folder / "new", hparams=hparams)).error
    )
