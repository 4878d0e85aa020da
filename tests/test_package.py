"""What importing the package does, and the family of its errors."""

import configparser
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import easyedit_dualedit
from easyedit_dualedit import errors

ERRORS = [
    member
    for _, member in inspect.getmembers(errors, inspect.isclass)
    if member.__module__ == errors.__name__
]


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules that a new process has after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    root = str(Path(__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


def test_importing_the_package_imports_nothing_heavy():
    loaded = modules_after("import easyedit_dualedit")
    assert "easyedit_dualedit" in loaded
    assert not loaded & {"easyeditor", "torch", "transformers", "torchvision", "yaml"}


def test_public_names_are_loaded_when_they_are_used():
    for name in easyedit_dualedit.__all__:
        assert getattr(easyedit_dualedit, name).__name__ == name
    assert set(easyedit_dualedit.__all__) <= set(dir(easyedit_dualedit))
    with pytest.raises(AttributeError, match="no attribute 'DualEdit'"):
        easyedit_dualedit.DualEdit  # noqa: B018
    loaded = modules_after("from easyedit_dualedit import DualEditConfig, GateConfig")
    assert not loaded & {"easyeditor", "torch", "transformers"}
    loaded = modules_after(
        "from easyedit_dualedit import DualEditor, EditMemory, load_model, register"
    )
    assert "torch" in loaded and not loaded & {"easyeditor"}


def test_importing_the_package_is_quick():
    code = (
        "import time; began = time.process_time(); import easyedit_dualedit;"
        " print(time.process_time() - began)"
    )
    root = str(Path(__file__).parents[1])
    taken = min(
        float(subprocess.check_output([sys.executable, "-c", code], cwd=root)) for _ in range(3)
    )
    assert taken < 0.15


def test_importing_the_core_does_not_import_easyedit():
    loaded = modules_after(
        "import easyedit_dualedit.method.editor, easyedit_dualedit.model.torchvision_ops"
    )
    assert "torch" in loaded
    assert not loaded & {"easyeditor", "torchvision", "matplotlib"}


def test_the_configuration_is_read_without_torch():
    loaded = modules_after("import easyedit_dualedit.method.config")
    assert "yaml" in loaded and "torch" not in loaded


def test_every_package_is_in_the_wheel():
    root = Path(__file__).parents[1]
    settings = configparser.ConfigParser()
    settings.read(root / "setup.cfg")
    listed = settings["options"]["packages"].split()
    folders = {path.parent.relative_to(root) for path in (root / "easyedit_dualedit").rglob("*.py")}
    there = {".".join(folder.parts) for folder in folders}
    assert sorted(listed) == sorted(there | {"easyedit_dualedit.hparams"}), "mend setup.cfg"
    assert settings["options"]["package_dir"].split() == [
        "easyedit_dualedit.hparams",
        "=",
        "hparams",
    ]


def test_the_version_is_a_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+([ab.]\w+)?", easyedit_dualedit.__version__)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_is_ours_and_a_standard_one(kind: type[Exception]):
    assert issubclass(kind, errors.DualEditError)
    assert kind.__doc__
    if kind is not errors.DualEditError:
        standard = [base for base in kind.__mro__ if base.__module__ == "builtins"]
        assert standard[0] not in (Exception, BaseException, object)
        with pytest.raises(standard[0], match="what to do"):
            raise kind("what to do")


def test_standard_handlers_keep_working():
    expected = {
        "ConfigError": ValueError,
        "DataError": ValueError,
        "LayerError": IndexError,
        "BackboneError": TypeError,
        "ModelLoadError": OSError,
        "EasyEditNotFoundError": ImportError,
        "UpstreamError": RuntimeError,
    }
    for name, standard in expected.items():
        assert issubclass(getattr(errors, name), standard)
