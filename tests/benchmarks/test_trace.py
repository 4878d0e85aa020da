"""An edit with `generate`, and a training step, can be followed through few files."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import trace
from benchmarks.trace import (
    MOST_OF_A_BATCH,
    MOST_OF_A_STEP,
    MOST_OF_AN_EDIT,
    files_entered,
    traced,
)
from easyedit_dualedit.model.inputs import Query


def test_only_files_of_the_package_whose_functions_are_called_count():
    assert files_entered(lambda: sorted([2, 1])) == []
    assert files_entered(lambda: Query("Who?")) == ["model/inputs.py"]
    assert files_entered(lambda: Query("Who?", "photo.jpg")) == ["model/inputs.py"]
    pixels = np.zeros((2, 2, 3), np.uint8)
    assert files_entered(lambda: Query("Who?", pixels)) == ["model/inputs.py", "model/pictures.py"]


def test_an_edit_and_a_step_enter_few_files_and_the_docs_tell_of_each(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = traced()
    told = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    for name, files in found.items():
        untold = [file for file in files if f"(../easyedit_dualedit/{file})" not in told]
        assert not untold, "the paths in docs/architecture.md name every file"
        bars = {
            "training step": MOST_OF_A_STEP,
            "training step, as `train` takes it": MOST_OF_A_BATCH,
        }
        most = bars.get(name, MOST_OF_AN_EDIT)
        assert len(files) <= most, f"{name} enters {len(files)}: {', '.join(files)}"
        assert len(set(files)) == len(files) > 4
    assert "method/gate.py" in found["edit and generate, learned gate"]
    monkeypatch.setattr(trace, "traced", lambda: found)
    trace.main()
    assert f"training step: {len(found['training step'])} files" in capsys.readouterr().out
