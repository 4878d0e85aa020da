"""Saved adapters and edits: loaded with numbers that are numbers, or told in one line."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from nasty import JSONS, Outcome, mutated, replaced, seeds, wrong_tensor
from safetensors.torch import load_file, save_file
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.files import digest_of
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE
from easyedit_dualedit.method.edit_file import EDITS_FILE, NUMBERS_FILE
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.checkpoint import Checkpoint  # noqa: F401  (imports are part of it)

GATE = {"kind": "cosine", "threshold": 0.9999}


def spoil(folder: Path, described: str, numbers: str, seed: int) -> bool:
    """Damage one of a pair of files; return whether its numbers are wrong ones, vouched for."""
    source = random.Random(seed)
    path = folder / described
    action = source.randrange(5)
    if action == 0:
        path.write_bytes(source.choice(JSONS))
    elif action == 1:
        path.write_bytes(mutated(path.read_bytes(), seed))
    elif action == 2:
        values = replaced(json.loads(path.read_text(encoding="utf-8")), seed)
        path.write_bytes(json.dumps(values).encode("utf-8", "surrogatepass"))
    elif action == 3:
        file = folder / numbers
        file.write_bytes(mutated(file.read_bytes(), seed))
        if source.random() < 0.5:
            vouch(path, folder / numbers)
    else:
        tensors = load_file(folder / numbers)
        name = source.choice(sorted(tensors))
        if tensors[name].isnan().any():  # a threshold that is not known yet
            return False
        tensors[name] = wrong_tensor(tensors[name], seed).contiguous()
        save_file(tensors, folder / numbers)
        vouch(path, folder / numbers)
        return True
    return False


def vouch(described: Path, numbers: Path) -> None:
    """Let a description say that these are its numbers."""
    values = json.loads(described.read_text(encoding="utf-8"))
    values.pop("weights_sha256", None)
    if "numbers_sha256" in values:
        values["numbers_sha256"] = digest_of(numbers)
    described.write_text(json.dumps(values), encoding="utf-8")


def test_adapters(
    fuzzing: Any,
    answered: Callable[[Callable[[], Any]], Outcome],
    llava: TinyModel,
    tmp_path: Path,
):
    trained_editor(llava, gate=GATE).save(tmp_path / "whole")
    whole = load_file(tmp_path / "whole" / WEIGHTS_FILE)

    @fuzzing("adapters")
    @given(seeds)
    def holds(seed: int) -> None:
        folder = copied(tmp_path)
        is_wrong = spoil(folder, CONFIG_FILE, WEIGHTS_FILE, seed)
        outcome = answered(lambda: DualEditor.load(llava.model, llava.processor, folder))
        assert not (is_wrong and outcome.error is None)
        if outcome.value is not None:
            for name, tensor in outcome.value.state_dict().items():
                assert bool(tensor.isfinite().all()) or whole[name].isnan().any(), name
        assert sorted(path.name for path in folder.iterdir()) == sorted((CONFIG_FILE, WEIGHTS_FILE))

    holds()


def test_edits(
    fuzzing: Any,
    answered: Callable[[Callable[[], Any]], Outcome],
    llava: TinyModel,
    tmp_path: Path,
):
    editor = trained_editor(llava, gate=GATE)
    memories = []
    for precision in ("int8", "float16", "float32"):
        memory = EditMemory(editor, precision=precision)  # type: ignore[arg-type]
        memory.add([Query(f"What is {each}?", picture("red"), "blue circle") for each in "abc"])
        memory.save(tmp_path / precision)
        memories.append(precision)

    @fuzzing("edits")
    @given(seeds)
    def holds(seed: int) -> None:
        folder = copied(tmp_path, random.Random(seed).choice(memories))
        is_wrong = spoil(folder, EDITS_FILE, NUMBERS_FILE, seed)
        outcome = answered(lambda: EditMemory.load(editor, folder))
        assert not (is_wrong and outcome.error is None)
        for edit in outcome.value or ():
            assert bool(edit.key.isfinite().all())
            for part in edit.projected.values():
                for packed in (part.keys, part.values):
                    assert bool(packed.unpacked().isfinite().all())
                    assert packed.values.dtype in (torch.int8, torch.float16, torch.float32)
        assert sorted(path.name for path in folder.iterdir()) == sorted((EDITS_FILE, NUMBERS_FILE))

    holds()


def copied(folder: Path, name: str = "whole") -> Path:
    target = folder / "copy"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / name, target)
    return target


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("ERROR")
