"""Inputs that once ended in a traceback, or were taken: each is done, or told in one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from workplace import SHORT, Workplace

from easyedit_dualedit.commands import parser as cli
from easyedit_dualedit.method.archive import CONFIG_FILE
from easyedit_dualedit.method.edit_file import EDITS_FILE

MARKUP = "[/b]"
"""What rich takes for the end of something that never began."""


def add(work: Workplace, folder: Path, **changes: Any) -> list[str]:
    gate = {"kind": "cosine", "threshold": 0.9999}
    hparams = work.hparams(archive=str(work.adapters), gate=gate, **changes)
    line: list[object] = ["edits", "add", "--hparams", hparams, "--edits", folder]
    line += ["--prompt", f"{MARKUP}?", "--target", "[/i]"]
    return [str(each) for each in line]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 1e300}, "lr = 1e+300"),
        ({"seed": 2**64}, f"seed = {2**64}: a whole number"),
        ({"seed": 10**400}, "seed = 1000"),
        ({"quantization": "4bit"}, "4-bit weights keep no gradient on a CPU"),
        ({"gate": [1, 2]}, "gate = [1, 2]"),
        ({"picture_workers": 10**6}, "picture_workers = 1000000: at most 256"),
        ({"modalities": ["text", "text"]}, "modalities = ('text', 'text'): each at most once"),
        ({"width": 2**40, "heads": 1}, "the memory is used up"),
        ({"backbone": [1]}, "backbone = [1]"),
    ],
)
def test_hyperparameters(work: Workplace, call: Any, changes: Any, told: str):
    hparams = work.hparams(**SHORT | changes)
    error = call(work.train("--output", work.folder / "new", hparams=hparams)).error
    assert told in error and len(error) < 1000
    assert not (work.folder / "new").exists()


@pytest.mark.parametrize(
    "option", ["--draws", "--rows", "--noise", "--layers", "--count", "--such-as-none"]
)
def test_long_arguments_are_not_quoted_whole(
    work: Workplace, option: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        cli.main(work.locate(option, "a\n" + "9" * 5000))
    told = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in told and len(told) < 500


def test_markup_in_names_and_questions(work: Workplace, call: Any):
    evaluated = call(work.evaluate("--limit", 1, "--output", work.folder / MARKUP))
    assert evaluated.code == 0 and MARKUP in evaluated.out.replace("\n", ""), evaluated.err
    added = call(add(work, work.folder / "edits" / MARKUP))
    assert added.code == 0 and f"{MARKUP}? -> [/i]" in added.out, added.err


@pytest.mark.parametrize("content", ["{}", "[]", "[{}]", "null", "{"])
def test_files_of_cases(work: Workplace, call: Any, content: str):
    command = work.evaluate("--limit", 1, hparams=work.hparams(archive=str(work.adapters)))
    assert call(command).code == 0
    (case,) = (work.folder / "outputs" / "evaluate" / "cases").iterdir()
    case.write_text(content)
    assert str(case) in call(command).error


@pytest.mark.parametrize("run", [[1], None, {"editor": 3}, 7])
def test_checkpoints_of_a_training(work: Workplace, call: Any, run: Any):
    output = work.folder / "new"
    output.mkdir()
    torch.save({"run": run, "step": 1}, output / "training.pt")
    assert "remove it" in call(work.train("--output", output)).error


@pytest.mark.parametrize("weight", ["NaN", "1e400", "-Infinity"])
def test_fingerprints_of_models(work: Workplace, call: Any, weight: str):
    folder = work.folder / "others"
    shutil.copytree(work.adapters, folder)
    path = folder / CONFIG_FILE
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"] = {"architecture": values["model"]["architecture"], "weights": ["weight"]}
    path.write_text(json.dumps(values).replace('"weight"', weight), encoding="utf-8")
    assert "weights of the fingerprint are no numbers" in call(work.edit(archive=str(folder))).error


def test_one_bad_byte_in_a_file_of_edits(work: Workplace, call: Any):
    folder = work.folder / "edits"
    assert call(add(work, folder)).code == 0
    path = folder / EDITS_FILE
    content = path.read_bytes()
    path.write_bytes(content[:50] + b"\xff" + content[51:])
    error = call(["edits", "list", "--edits", str(folder)]).error
    assert str(path) in error and len(error) < 500
