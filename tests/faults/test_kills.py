"""Commands that are killed at random moments lose nothing that was there, and go on."""

import json
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import Ended, Killable
from workplace import Workplace

from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.method.edit_file import EDITS_FILE, EditFile
from easyedit_dualedit.storage.folder_lock import LOCK_FILE

logger = logging.getLogger(__name__)

_TRIES = 10
"""Runs that may end before their kill, one after the other."""


def strays(folder: Path) -> list[Path]:
    """Return what a killed process may have left behind."""
    return [
        path
        for path in folder.rglob("*")
        if path.suffix == ".part" or path.name.startswith((".saving-", LOCK_FILE))
    ]


def done(killable: Killable, arguments: list[str], **work: Any) -> Ended:
    """Let something end, which must work."""
    ended = killable.run(arguments, **work)
    assert ended.code == 0, (arguments, ended.said)
    return ended


class Killer:
    """Kills again and again: in turn after a random time, and right before a random change."""

    def __init__(self, killable: Killable, kills: int):
        self._killable, self._kills = killable, kills
        self._source = random.Random(kills)

    def kill(
        self, make: Callable[[int], list[str]], holds: Callable[[], Any], folder: Path, **work: Any
    ) -> int:
        """Kill a command, let it go on, and look at what is there after each kill.

        Moments lie all over what a whole run takes. One that goes on has less left, and may come
        to its end before its moment. That is no kill: the next run is killed in its stead.

        Args:
            make: returns the command line of a run, by number; 0 is never killed.
            holds: looks at what is there.
            folder: that nothing stray is left in at the end.
            **work: what it is, if it is no command.

        Returns:
            The number of the last run, which has ended as all before it.
        """
        whole = done(self._killable, make(0), **work)
        run = 1
        for place in range(self._kills):
            for _ in range(_TRIES):
                ended = self._killable.run(make(run), **self._moment(whole, place), **work)
                assert ended.was_killed or ended.code == 0, (make(run), ended.said)
                holds()
                if ended.was_killed:
                    break
                run += 1
            assert ended.was_killed, f"{make(run)} ended before its kill {_TRIES} times"
        done(self._killable, make(run), **work)
        holds()
        assert not strays(folder)
        logger.info("killed %d times, %d runs ended", self._kills, run + 1)
        return run

    def _moment(self, whole: Ended, place: int) -> dict[str, Any]:
        if place % 2:
            return {"seconds": self._source.uniform(0.1, 0.9) * whole.seconds}
        return {"change": self._source.randrange(whole.changes)}


@pytest.fixture
def killer(killable: Killable, kills: int) -> Killer:
    """What kills, as often as the option says."""
    return Killer(killable, kills)


@pytest.fixture
def hparams(work: Workplace) -> Path:
    gate = {"kind": "cosine", "threshold": 0.9999}
    return work.hparams(archive=str(work.adapters), gate=gate)


def asked_in(folder: Path) -> list[str]:
    """Return the questions of the edits in a folder, which are whole."""
    if not (folder / EDITS_FILE).exists():
        return []
    return [edit.provenance.prompt for edit in EditFile.load(folder).edits]


def test_edits_add(work: Workplace, hparams: Path, killer: Killer):
    folder = work.folder / "edits"
    seen: set[str] = set()
    calls = iter(range(10_000))

    def add(_: int) -> list[str]:
        line = ["edits", "add", "--edits", folder, "--hparams", hparams, "--target", "a"]
        line += ["--image", work.images / "0.png", "--prompt", f"What is {next(calls)}?"]
        return [str(each) for each in line]

    def holds() -> None:
        now = set(asked_in(folder))
        assert seen <= now, "an edit was lost"
        seen.update(now)

    killer.kill(add, holds, folder)
    assert {"What is 0?", f"What is {next(calls) - 1}?"} <= seen


def test_edits_add_of_a_file(work: Workplace, hparams: Path, killer: Killer):
    """What was added before the kill stays, and the same command adds what is missing, once."""
    questions = [item["src"] for item in json.loads(work.data.read_text(encoding="utf-8"))]
    held: dict[Path, set[str]] = {}

    def add(run: int) -> list[str]:
        folder = work.folder / "edits" / str(run)
        held.setdefault(folder, set())
        line = ["edits", "add", "--edits", folder, "--hparams", hparams]
        line += ["--data", work.data, "--images", work.images]
        return [str(each) for each in line]

    def holds() -> None:
        for folder, before in held.items():
            now = asked_in(folder)
            assert before <= set(now), "an edit was lost"
            assert len(set(now)) == len(now), "an edit was added twice"
            before.update(now)

    last = killer.kill(add, holds, work.folder / "edits")
    for run in range(last + 1):
        assert sorted(asked_in(work.folder / "edits" / str(run))) == sorted(questions)


def test_save(work: Workplace, tmp_path: Path, killer: Killer):
    folder = tmp_path / "saved"
    first = Archive.load(work.adapters)
    first.save(folder)

    def holds() -> None:
        loaded = Archive.load(folder)
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor.nan_to_num(), loaded.tensors[name].nan_to_num()), name

    killer.kill(lambda _: [str(folder), "20"], holds, folder, work="save")


def test_train(work: Workplace, killer: Killer, tmp_path: Path):
    hparams = work.hparams(lr=0.01, gate_steps=5, batch_size=4, augment_targets=0.5, text_only=0.5)
    folder = tmp_path / "trained"

    def train(run: int) -> list[str]:
        return work.train("--output", folder / str(run), "--steps", 6, hparams=hparams)

    last = killer.kill(train, lambda: None, folder)
    whole = Archive.load(folder / "0")
    for run in range(1, last + 1):
        continued = Archive.load(folder / str(run))
        for name, tensor in whole.tensors.items():
            assert torch.equal(tensor.nan_to_num(), continued.tensors[name].nan_to_num()), name


def json_of(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_evaluate(work: Workplace, hparams: Path, killer: Killer):
    outputs = work.folder / "outputs"

    def evaluate(run: int) -> list[str]:
        return work.evaluate("--limit", 4, "--name", run, hparams=hparams)

    def holds() -> None:
        for case in outputs.glob("*/cases/*.json"):
            assert json_of(case)["methods"]

    last = killer.kill(evaluate, holds, outputs)
    whole = (outputs / "0" / "metrics.json").read_bytes()
    for run in range(1, last + 1):
        assert (outputs / str(run) / "metrics.json").read_bytes() == whole


def test_many(work: Workplace, hparams: Path, killer: Killer):
    outputs = work.folder / "outputs"

    def many(run: int) -> list[str]:
        line = ["many", "--hparams", hparams, "--data", work.data, "--images", work.images]
        line += ["--limit", 2, "--counts", 2, "--methods", "dualedit"]
        line += ["--output", outputs, "--name", run]
        return [str(each) for each in line]

    last = killer.kill(many, lambda: None, outputs)
    whole = json_of(outputs / "0" / "metrics.json")
    for run in range(1, last + 1):
        assert json_of(outputs / str(run) / "metrics.json")["points"] == whole["points"]


def test_benchmark(work: Workplace, killer: Killer):
    outputs = work.folder / "outputs"
    hparams = work.hparams(lr=0.01, gate_steps=5, max_iters=6, val_interval=3)

    def benchmark(run: int) -> list[str]:
        line = ["benchmark", "--hparams", hparams, "--data", work.data, "--images", work.images]
        line += ["--train", work.data, "--limit", 2, "--methods", "dualedit", "--output", outputs]
        line += ["--protocols", "generate", "--name", run]
        return [str(each) for each in line]

    last = killer.kill(benchmark, lambda: None, outputs)
    whole = json_of(outputs / "0" / "metrics.json")
    for run in range(1, last + 1):
        assert json_of(outputs / str(run) / "metrics.json")["methods"] == whole["methods"]
