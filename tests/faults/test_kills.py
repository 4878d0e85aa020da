"""Commands that are killed at random moments lose nothing that was there, and go on."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import started
from workplace import Workplace

from easyedit_dualedit.commands import parser as cli
from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.method.edit_file import EDITS_FILE, EditFile
from easyedit_dualedit.storage.folder_lock import LOCK_FILE
from easyedit_dualedit.train import trainer

SLOWEST = 300.0
"""Seconds that a command may take here, on a busy machine."""


def command(arguments: list[str]) -> None:
    """Run a command as a process of its own does."""
    torch.set_num_threads(1)
    trainer.CHECKPOINT_EVERY = 1
    raise SystemExit(cli.main(arguments))


def killed(arguments: list[str], seconds: float) -> bool:
    """Start a command and kill it after some time; return whether it was done before."""
    process = started(command, arguments)
    process.join(seconds)
    is_done = process.exitcode is not None
    if not is_done:
        process.kill()
    process.join()
    return is_done


def duration_of(arguments: list[str]) -> float:
    """Return how long a command takes, which must work."""
    start = time.monotonic()
    process = started(command, arguments)
    process.join(SLOWEST)
    assert process.exitcode == 0, arguments
    return time.monotonic() - start


def strays(folder: Path) -> list[Path]:
    """Return what a killed process may have left behind."""
    return [
        path
        for path in folder.rglob("*")
        if path.suffix == ".part" or path.name.startswith((".saving-", LOCK_FILE))
    ]


def kill_and_continue(
    make: Callable[[int], list[str]], holds: Callable[[], Any], folder: Path, kills: int
) -> None:
    """Kill a command again and again, look at what is there, and let it end.

    Args:
        make: returns the command line; those of one place go on with what others left.
        holds: looks at what is there after each kill.
        folder: that nothing stray is left in at the end.
        kills: how often.
    """
    whole = duration_of(make(-1))
    source = random.Random(kills)
    for place in range(kills):
        killed(make(place), source.uniform(0.05, 1.0) * whole)
        holds()
    assert duration_of(make(kills)) < SLOWEST
    holds()
    assert not strays(folder)


@pytest.fixture
def hparams(work: Workplace) -> Path:
    gate = {"kind": "cosine", "threshold": 0.9999}
    return work.hparams(archive=str(work.adapters), gate=gate)


def test_edits_add(work: Workplace, hparams: Path, kills: int):
    folder = work.folder / "edits"
    seen: set[str] = set()

    def add(place: int) -> list[str]:
        line = ["edits", "add", "--edits", folder, "--hparams", hparams]
        line += ["--image", work.images / "0.png", "--prompt", f"What is {place}?", "--target", "a"]
        return [str(each) for each in line]

    def holds() -> None:
        if not (folder / EDITS_FILE).exists():
            assert not seen
            return
        now = {edit.provenance.prompt for edit in EditFile.load(folder).edits}
        assert seen <= now, "an edit was lost"
        seen.update(now)

    kill_and_continue(add, holds, folder, kills)
    assert {"What is -1?", f"What is {kills}?"} <= seen


def save_again(folder: Path, times: int) -> None:
    archive = Archive.load(folder)
    for _ in range(times):
        archive.save(folder)


def test_save(work: Workplace, tmp_path: Path, kills: int):
    folder = tmp_path / "saved"
    first = Archive.load(work.adapters)
    first.save(folder)
    source = random.Random(kills)
    for _ in range(3 * kills):
        process = started(save_again, folder, 10_000)
        process.join(source.uniform(0.2, 1.5))
        process.kill()
        process.join()
        loaded = Archive.load(folder)
        assert all(
            torch.equal(first.tensors[n], t) or t.isnan().any() for n, t in loaded.tensors.items()
        )
    first.save(folder)
    assert not strays(folder)


def test_train(work: Workplace, kills: int, tmp_path: Path):
    hparams = work.hparams(lr=0.01, gate_steps=5, batch_size=4, augment_targets=0.5)

    def train(place: int) -> list[str]:
        output = tmp_path / ("whole" if place < 0 else "killed")
        return work.train("--output", output, "--steps", 6, hparams=hparams)

    kill_and_continue(train, lambda: None, tmp_path, kills)
    whole, continued = (Archive.load(tmp_path / name) for name in ("whole", "killed"))
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor.nan_to_num(), continued.tensors[name].nan_to_num()), name


def json_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_evaluate(work: Workplace, hparams: Path, kills: int):
    outputs = work.folder / "outputs"

    def evaluate(place: int) -> list[str]:
        name = "whole" if place < 0 else "killed"
        return work.evaluate("--limit", 4, "--name", name, hparams=hparams)

    def holds() -> None:
        for case in (outputs / "killed" / "cases").glob("*.json"):
            assert json_of(case)["methods"]

    kill_and_continue(evaluate, holds, outputs, kills)
    whole, continued = (outputs / name / "metrics.json" for name in ("whole", "killed"))
    assert whole.read_bytes() == continued.read_bytes()


def test_many(work: Workplace, hparams: Path, kills: int):
    outputs = work.folder / "outputs"

    def many(place: int) -> list[str]:
        line = ["many", "--hparams", hparams, "--data", work.data, "--images", work.images]
        line += ["--counts", 1, 3, "--methods", "dualedit", "--output", outputs]
        line += ["--name", "whole" if place < 0 else "killed"]
        return [str(each) for each in line]

    kill_and_continue(many, lambda: None, outputs, kills)
    whole, continued = (json_of(outputs / name / "metrics.json") for name in ("whole", "killed"))
    assert whole["points"] == continued["points"]


def test_benchmark(work: Workplace, kills: int):
    outputs = work.folder / "outputs"
    hparams = work.hparams(lr=0.01, gate_steps=5, max_iters=6, val_interval=3)

    def benchmark(place: int) -> list[str]:
        line = ["benchmark", "--hparams", hparams, "--data", work.data, "--images", work.images]
        line += ["--train", work.data, "--limit", 2, "--methods", "dualedit", "--output", outputs]
        line += ["--protocols", "generate", "--name", "whole" if place < 0 else "killed"]
        return [str(each) for each in line]

    kill_and_continue(benchmark, lambda: None, outputs, kills)
    whole, continued = (json_of(outputs / name / "metrics.json") for name in ("whole", "killed"))
    assert whole["methods"] == continued["methods"]
