"""Curves of a training as files: table, plot, and what TensorBoard reads."""

import sys
from pathlib import Path

import pytest

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.report.tensorboard import TensorBoard
from easyedit_dualedit.report.training_curves import draw_curves
from easyedit_dualedit.train.curves import Curves, Line

SHARES = {"all": {"reliability": 0.5, "text_locality": 1.0}, "unseen": {"reliability": 0.25}}
LINES: list[Line] = [
    {"step": 2, "part": "training", "loss": {"total": 2.0, "reliability": 1.0}},
    {
        "step": 2,
        "part": "validation",
        "gate": "learned",
        "loss": {"total": 3.0},
        "gated": SHARES,
        "adapters": SHARES,
        "is_best": True,
    },
]


def test_table_and_plot_are_drawn_from_the_lines(tmp_path: Path):
    curves = Curves(tmp_path)
    curves.begin(0)
    for line in LINES:
        curves.add(line)
    assert draw_curves(tmp_path) == LINES
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "curves.csv").read_text().splitlines()
    assert table[0].startswith("step,part,loss.total") and len(table) == 3


def test_tensorboard_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        TensorBoard(tmp_path)


def test_tensorboard_has_every_number(tmp_path: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoard(tmp_path)
    for line in LINES:
        log(line)
    again = TensorBoard(tmp_path)
    again({**LINES[0], "loss": {"total": 1.5}})
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert "validation/gated.unseen.reliability" in found.Tags()["scalars"]
    assert [(e.step, e.value) for e in found.Scalars("training/loss.total")] == [(2, 1.5)]
