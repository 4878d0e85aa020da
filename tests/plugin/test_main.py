"""`python -m easyedit_dualedit run`."""

import subprocess
import sys
from pathlib import Path

import pytest
from easyedit_fixtures import needs_easyedit

from easyedit_dualedit.__main__ import main, run
from easyedit_dualedit.errors import EasyEditNotFoundError


def test_a_script_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tmp_path / "nothing.py")]) == 2
    assert "no script at" in capsys.readouterr().err


def test_no_script_is_an_error_and_help_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert main(["run", "--help"]) == 0
    assert capsys.readouterr().err.count("usage: python -m easyedit_dualedit run SCRIPT") == 2


def test_without_easyedit_the_message_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise EasyEditNotFoundError("EasyEdit is not importable; get it")

    monkeypatch.setattr("easyedit_dualedit.plugin.register", missing)
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit(9)")
    assert run([str(script)]) == 1
    assert capsys.readouterr().err == "error: EasyEdit is not importable; get it\n"


@needs_easyedit
def test_an_unmodified_script_finds_the_method_its_arguments_and_its_neighbours(
    tmp_path: Path,
) -> None:
    (tmp_path / "neighbour.py").write_text("ANSWER = 7\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from neighbour import ANSWER\n"
        "from easyeditor import ALG_MULTIMODAL_DICT, DualEditMultimodalHparams\n"
        "assert __name__ == '__main__'\n"
        "print(ALG_MULTIMODAL_DICT['DualEdit'].__name__, sys.argv)\n"
        "sys.exit(ANSWER)\n"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "easyedit_dualedit", "run", str(script), "--a", "b"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert found.returncode == 7, found.stderr
    expected = f"apply_dualedit_to_multimodal_model {[str(script), '--a', 'b']}"
    assert expected in found.stdout
