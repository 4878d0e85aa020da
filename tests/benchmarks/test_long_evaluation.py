"""A long evaluation is measured part by part."""

from pathlib import Path

import pytest

from benchmarks.long_evaluation import measure


def test_each_part_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = measure(4, 2, tmp_path)
    assert [done for done, _, _ in rows] == [2, 4]
    assert all(spent > 0 and mib > 0 for _, spent, mib in rows)
    assert capsys.readouterr().out.count("\n") == 2
    assert len(list((tmp_path / "cases").glob("*.json"))) == 4
