"""The patches for EasyEdit: each applies, and its test fails without it and passes with it."""

import importlib.util
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from easyedit_fixtures import needs_master
from markdown_pages import ROOT

from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.world import draw_scene

needs_its_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers.modeling_attn_mask_utils") is None,
    reason="EasyEdit's master imports what this transformers has no longer; 5.5.4 has it",
)
"""Without this package, which puts in its place what is gone."""

UPSTREAM = ROOT / "upstream"
PATCHES = sorted(UPSTREAM.glob("*.patch"))

OPERATORS = """from easyedit_dualedit.model.torchvision_ops import define_missing_operators
define_missing_operators()
"""
"""Run at the start of every process: a torchvision for CUDA beside a PyTorch without it."""


SCRIPT = """import sys
import easyeditor
import yaml
from easyeditor import (
    DualEditMultimodalHparams, DualEditMultimodalTrainingHparams, DualEditTrainer, MultimodalEditor
)
def read(kind, path):
    with open("hparams/" + path) as file:
        return kind.from_dict({**yaml.safe_load(file), "device": "cpu"})
trained = read(DualEditMultimodalTrainingHparams, "TRAINING/DualEdit/llavaov-7b.yaml")
edited = read(DualEditMultimodalHparams, "DualEdit/llavaov-7b.yaml")
assert edited.archive.endswith(trained.name.rpartition("/")[2])
editor = MultimodalEditor.from_hparams(DualEditMultimodalHparams.from_hparams("testbed"))
(case,), _, _ = editor.edit(
    prompts=["What is the green thing?"], targets=["square"], image=[sys.argv[1]],
    file_type=["image"],
)
assert case["pre"]["rewrite_acc"] == 0 and case["post"]["rewrite_acc"] == 1, case
"""
"""Names nothing of this package."""

WITHOUT = """import sys
sys.modules["easyedit_dualedit"] = None  # as if it were not installed
import easyeditor
assert "DualEdit" not in easyeditor.ALG_MULTIMODAL_DICT
assert "DUALEDIT" not in easyeditor.ALG_TRAIN_DICT
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what the patches change."""
    home, folder = Path(os.environ["EASYEDIT_HOME"]), tmp_path / "upstream"
    folder.mkdir()
    shutil.copytree(
        home / "easyeditor", folder / "easyeditor", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(home / "README.md", folder)
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(OPERATORS, encoding="utf-8")
    return folder


def apply(clone: Path, patch: Path, *options: str) -> None:
    """Apply a patch; outside a repository, git needs nothing but the files."""
    command = ["git", "apply", *options, str(patch)]
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(clone.parent)}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{patch.name}: {done.stderr}"


def python(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, whose EasyEdit is the one that is imported."""
    # What this process has there may be another transformers.
    parts = [str(clone / "site"), str(clone), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, parts))}
    environment.pop("EASYEDIT_HOME")
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)


def outcomes(clone: Path) -> dict[str, bool]:
    """Return whether all tests of each file pass, in one process that imports EasyEdit once."""
    done = python(clone, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests")
    found: dict[str, bool] = {}
    pattern = r"^(PASSED|FAILED|ERROR) tests/(\w+)\.py"
    for outcome, name in re.findall(pattern, done.stdout, re.MULTILINE):
        found[name] = found.get(name, True) and outcome == "PASSED"
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    return found


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_says_what_it_is_for(patch: Path) -> None:
    text = patch.read_text(encoding="utf-8")
    head = text.partition("diff --git")[0]
    assert all(f"\n{part}:" in head for part in ("What", "Where"))
    assert "+++ b/tests/test_" in text
    assert f"({patch.name})" in (UPSTREAM / "README.md").read_text(encoding="utf-8")


@needs_master
@needs_its_transformers
def test_each_test_fails_before_and_passes_after(clone: Path) -> None:
    for patch in PATCHES:
        apply(clone, patch, "--include=tests/*")
    before = outcomes(clone)
    assert len(before) == len(PATCHES)
    assert not any(before.values()), before
    shutil.rmtree(clone / "tests")
    for patch in PATCHES:
        apply(clone, patch)
    after = outcomes(clone)
    assert after == dict.fromkeys(before, True)


@needs_master
@needs_its_transformers
def test_with_its_patch_easyedit_has_dualedit(clone: Path, tmp_path: Path) -> None:
    apply(clone, UPSTREAM / "dualedit.patch")
    scene = tmp_path / "scene.png"
    render(draw_scene(random.Random(0)), 0).save(scene)
    for code, arguments in ((SCRIPT, (str(scene),)), (WITHOUT, ())):
        done = python(clone, "-c", code, *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    row = "| [DualEdit](https://arxiv.org/abs/2506.13638) |"
    assert row in (clone / "README.md").read_text(encoding="utf-8")
