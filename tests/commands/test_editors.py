"""Every command that takes trained adapters takes both forms: our folder, and a checkpoint file."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from workplace import Workplace

from easyedit_dualedit.measure.run import METRICS_FILE
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.archives import described_state


@pytest.fixture(scope="module")
def checkpoint(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared adapters as EasyEdit's trainer writes them."""
    model, processor = load_model(str(trained / "model"))
    editor = DualEditor.load(model, processor, trained / "adapters")
    path = tmp_path_factory.mktemp("checkpoint") / "DUALEDIT"
    torch.save({"model": described_state(editor), "opt": {}, "val_stats": {}, "step": 4}, path)
    return path


def lines(work: Workplace, archive: Path, place: Path) -> dict[str, list[str]]:
    """Return a command line that takes an archive for every command that does."""
    gate = {"kind": "cosine", "threshold": 0.9999}
    hparams = work.hparams(gate=gate, batch_size=2, gate_steps=2, max_iters=2, val_interval=1)
    given = ["--hparams", hparams, "--archive", archive]
    data = ["--data", work.data, "--images", work.images, "--limit", 2]
    edits = ["--edits", place / "edits"]
    one = ["--prompt", "What is it?", "--target", "a", "--image", work.images / "0.png"]
    made: dict[str, list[object]] = {
        "edit": ["edit", *given, *one],
        "edits add": ["edits", "add", *given, *edits, *one],
        "edits apply": ["edits", "apply", *given, *edits, "--ask", "What is it?"],
        "chat": ["chat", *given, *edits],
        "evaluate": ["evaluate", *given, *data, "--output", place],
        "many": ["many", *given, *data, "--counts", 2, "--methods", "dualedit", "--output", place],
        "benchmark": [
            *("benchmark", *given, *data, "--methods", "dualedit", "--output", place),
            *("--protocols", "generate"),
        ],
        "train": ["train", *given, *data[:-1], 8, "--gate-only", "--output", place / "again"],
    }
    return {name: [str(each) for each in line] for name, line in made.items()}


def test_both_forms_of_adapters_work_everywhere(
    work: Workplace, call: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    answers: list[str] = []
    numbers: list[Any] = []
    for form, archive in (("folder", work.adapters), ("file", checkpoint)):
        for name, line in lines(work, archive, work.folder / form).items():
            monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n"))
            called = call(line)
            assert called.code == 0, (form, name, called.err)
            if name == "edit":
                answers.append(called.out)
        for run in ("evaluate", "benchmark"):
            metrics = work.folder / form / run / METRICS_FILE
            numbers.append(json.loads(metrics.read_text(encoding="utf-8"))["methods"])
    assert answers[0] == answers[1]
    assert numbers[:2] == numbers[2:]


def test_a_file_that_is_no_checkpoint_is_one_line_everywhere(work: Workplace, call: Any):
    path = work.folder / "wrong"
    torch.save({"model": {"a": torch.zeros(1)}}, path)
    for name, line in lines(work, path, work.folder / "out").items():
        if name in ("edits apply", "chat"):
            continue  # there are no edits, which is told first
        called = call(line)
        assert called.code == 2, name
        told = called.err.strip().splitlines()[-1]
        assert told.startswith("error: ") and f"{path} is no checkpoint of DualEdit" in told, name


def test_a_method_that_was_asked_for_by_name_and_failed_is_no_success(work: Workplace, call: Any):
    line = lines(work, work.adapters, work.folder / "out")["benchmark"]
    empty = work.folder / "empty"
    empty.mkdir()
    called = call([*line, "--set", f"dualedit.archive={empty}"])
    assert called.code == 2
    assert "error: dualedit failed (ArchiveError: " in called.err
