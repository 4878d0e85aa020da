"""A torchvision whose operators are missing is made importable, and nothing else is touched.

Each case runs in a process of its own, with a stand-in for torchvision.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKS = "transforms = 'real'\n"
LACKS_OPERATORS = """
import torch
import torchvision.part
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("operator torchvision::nms does not exist")
transforms = torchvision.part.transforms
"""
BROKEN = "raise RuntimeError('something else is wrong')\n"
PRELUDE = """
import sys
from easyedit_dualedit.model.torchvision_ops import define_missing_operators as define
"""


def run(folder: Path, code: str, torchvision: str | None) -> str:
    """Return what `code` prints in a new process that sees the given torchvision."""
    package = folder / "torchvision"
    package.mkdir()
    if torchvision is None:
        code = (
            "import importlib.util as util\nfind = util.find_spec\n"
            "util.find_spec = lambda n, *a: None if n == 'torchvision' else find(n, *a)\n" + code
        )
    else:
        (package / "__init__.py").write_text(torchvision)
        (package / "part.py").write_text("transforms = 'real'")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_missing_operators_are_defined_once_and_torchvision_then_works(tmp_path: Path):
    code = """
import torch
print(define(), define())
import torchvision
print(torchvision.transforms)
import gc
gc.collect()
print(hasattr(torch.ops.torchvision, "nms"), hasattr(torch.ops.torchvision, "qnms"))
"""
    assert run(tmp_path, code, LACKS_OPERATORS).split("\n") == ["True False", "real", "True True"]


@pytest.mark.parametrize(
    ("torchvision", "before", "imported"),
    [(WORKS, "", True), (LACKS_OPERATORS, "sys.modules['torchvision'] = sys", True)]
    + [(None, "", False)],
    ids=["works", "already-imported", "absent"],
)
def test_nothing_is_defined_where_nothing_is_missing(
    tmp_path: Path, torchvision: str | None, before: str, imported: bool
):
    code = f"""
import torch
{before}
print(define(), 'torchvision' in sys.modules, hasattr(torch.ops.torchvision, "nms"))
"""
    assert run(tmp_path, code, torchvision) == f"False {imported} False"


def test_other_errors_of_torchvision_pass(tmp_path: Path):
    code = """
import torch
try:
    define()
except RuntimeError as error:
    print(error, hasattr(torch.ops.torchvision, "nms"))
"""
    assert run(tmp_path, code, BROKEN) == "something else is wrong False"
