"""The lines of a training: kept whole, cut where a training goes on, shown as a table."""

import json
from pathlib import Path

import pytest

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.train.curves import LINES_FILE, Curves, Line, read_curves, write_table


def line(step: int, **values: object) -> Line:
    return {"step": step, "part": "training", **values}


def test_a_continued_training_keeps_what_its_checkpoint_knows(tmp_path: Path):
    told: list[Line] = []
    curves = Curves(tmp_path, [told.append])
    curves.begin(0)
    for step in (1, 2, 3):
        curves.add(line(step))
    assert told == read_curves(tmp_path) and curves.count == 3
    with (tmp_path / LINES_FILE).open("a") as file:
        file.write('{"step": 4, "pa')  # killed while it wrote
    (tmp_path / f"{LINES_FILE}.4194305.part").touch()  # by a process that is no more
    again = Curves(tmp_path)
    again.begin(2)
    again.add(line(3, loss=1.0))
    assert read_curves(tmp_path) == [line(1), line(2), line(3, loss=1.0)]
    assert [path.name for path in tmp_path.iterdir()] == [LINES_FILE]
    Curves(tmp_path).begin(0)
    assert read_curves(tmp_path) == []


def test_a_table_has_a_column_for_each_value(tmp_path: Path):
    lines = [line(1, loss={"total": 2.5}), line(2, gated={"all": {"reliability": 0.5}})]
    write_table(lines, tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == (
        "step,part,loss.total,gated.all.reliability\n1,training,2.5,\n2,training,,0.5\n"
    )


def test_what_is_no_curve_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no curves in"):
        read_curves(tmp_path)
    (tmp_path / LINES_FILE).write_text(json.dumps([1]) + "\n")
    with pytest.raises(DataError, match="line 1 is no step of a training"):
        read_curves(tmp_path)
