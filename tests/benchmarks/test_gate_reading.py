"""The benchmark of what a gate reads counts both ways of it."""

from pathlib import Path

import pytest
import torch
from tiny_data import write_data
from tiny_editors import trained_editor
from tiny_models import TinyModel

from benchmarks.gate_reading import costs, main, table
from easyedit_dualedit.data.records import load_records


def test_a_shared_reading_runs_less(llava: TinyModel, tmp_path: Path):
    records = load_records(write_data(tmp_path, 12), tmp_path)
    found = costs(trained_editor(llava), records)
    plain, shared = found["a row each"], found["shared"]
    assert plain.records == shared.records == 12
    assert plain.queries == shared.queries == 96
    # Six kinds show a picture, and three of them, whose first answers are asked for, show it again.
    assert plain.pictures == 9 * 12 and plain.rows == 11 * 12
    assert shared.pictures < plain.pictures / 2
    assert shared.rows < 0.6 * plain.rows
    assert shared.layer_tokens < plain.layer_tokens
    assert len(table(found).splitlines()) == 4


def test_the_command_prints_a_table(
    llava: TinyModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    folder = llava.save(tmp_path / "model")
    data = write_data(tmp_path, 4)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    threads = torch.get_num_threads()
    given = ["--model", folder, "--data", data, "--images", tmp_path, "--text-layer", 1]
    main([str(each) for each in given])
    torch.set_num_threads(threads)
    assert "| shared | " in capsys.readouterr().out
