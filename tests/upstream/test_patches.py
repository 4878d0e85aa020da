"""The patches for EasyEdit: each applies, and its test fails without it and passes with it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from easyedit_fixtures import needs_master
from markdown_pages import ROOT

UPSTREAM = ROOT / "upstream"
PATCHES = sorted(UPSTREAM.glob("*.patch"))

OPERATORS = """from easyedit_dualedit.model.torchvision_ops import define_missing_operators
define_missing_operators()
"""
"""Run at the start of every process: a torchvision for CUDA beside a PyTorch without it."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the patches change."""
    home, folder = Path(os.environ["EASYEDIT_HOME"]), tmp_path_factory.mktemp("upstream")
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


def outcomes(clone: Path) -> dict[str, bool]:
    """Return whether all tests of each file pass, in one process that imports EasyEdit once."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests"]
    path = os.pathsep.join(map(str, (clone / "site", clone, ROOT)))
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("EASYEDIT_HOME")
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
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
