"""The comparison of two runs as text, table, CSV and page, and the command that writes it."""

import csv
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import benchmark

EVIL = "</script><img src=x onerror=alert(1)>"


def written(tmp_path: Path, call: Any, *options: str) -> tuple[Path, Any]:
    fails = {index: ("image_locality",) for index in range(12)}
    first = benchmark(tmp_path / "first run", 20, {"DualEdit": fails})
    second = benchmark(tmp_path / "second", 20, {"DualEdit": {3: ("reliability",)}})
    for page in (first, second):
        (page / "results.html").write_text("a page")
    output = tmp_path / "compared"
    arguments = ["compare", str(first), str(second), "--output", str(output), *options]
    return output, call(arguments)


def test_the_command_tells_and_writes_what_changed(tmp_path: Path, call: Any):
    output, called = written(tmp_path, call)
    assert called.code == 0, called.err
    told = " ".join(called.out.split())
    assert "20 cases of DualEdit in both runs; 1 answer became worse, 12 better." in told
    assert "Better in the second run, beyond chance: generate: image locality +60.0" in told
    assert "Worse in the second run, beyond chance: nothing." in told
    markdown = (output / "comparison.md").read_text()
    assert "| visedit | image locality | 40.0 | 100.0 | +60.0 (" in markdown
    assert "| 3 | reliability | reliability 3? | yes 3 | yes 3 | no | worse: generate" in markdown
    rows = list(csv.DictReader((output / "comparison.csv").read_text().splitlines()))
    (row,) = [row for row in rows if (row["protocol"], row["metric"]) == ("generate", "average")]
    # Record 3 fails in both, in another metric.
    assert (row["better"], row["worse"], row["n"]) == ("11", "0", "20")
    change = float(row["second"]) - float(row["first"])
    assert change == pytest.approx(float(row["difference"])) == pytest.approx(11.0)


def test_the_page_links_each_case_in_both_runs_and_runs_nothing(tmp_path: Path, call: Any):
    output, _ = written(tmp_path, call)
    page = (output / "comparison.html").read_text()
    assert 'href="../first%20run/results.html#case=3"' in page
    assert 'href="../second/results.html#case=3"' in page
    assert "script-src 'none'" in page and "<script" not in page


def test_answers_are_no_markup(tmp_path: Path, call: Any):
    output, _ = written(tmp_path, call)
    case = tmp_path / "second" / "methods" / "dualedit" / "cases" / "00003.json"
    case.write_text(case.read_text().replace('"no"', f'"{EVIL}"'))
    folders = [str(tmp_path / name) for name in ("first run", "second")]
    assert call(["compare", *folders, "--output", str(output)]).code == 0
    page = (output / "comparison.html").read_text()
    assert EVIL not in page and "onerror=alert(1)" in page


def test_without_output_nothing_is_written_and_mistakes_are_one_line(tmp_path: Path, call: Any):
    output, _ = written(tmp_path, call)
    before = sorted(tmp_path.rglob("*"))
    folders = [str(tmp_path / name) for name in ("first run", "second")]
    assert call(["compare", *folders]).code == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "holds no run" in call(["compare", folders[0], str(output)]).error
