"""The example script, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from easyedit_fixtures import needs_master, needs_release
from markdown_pages import ROOT

from easyedit_dualedit.testbed import write_records

SCRIPT = ROOT / "examples" / "compare_in_easyedit.py"


def rows_of(folder: Path, files: list[Path]) -> list[list[str]]:
    """Return the cells of the table that the script prints for two records."""
    data = write_records(folder / "data", "vqa", "eval", 2)
    command = [sys.executable, SCRIPT, "--data", data, "--images", folder / "data" / "images"]
    command += ["--model", "testbed", "--device", "cpu", "--limit", "2", "--hparams", *files]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0][:3] == ["method", "reliability", "text generality"]
    assert cells[1] == ["DualEdit", *["100.0"] * 5]
    return cells


@needs_release
def test_the_release_runs_what_it_has(tmp_path: Path) -> None:
    shipped = ROOT / "examples" / "hparams" / "LoRA" / "testbed.yaml"
    cells = rows_of(tmp_path, [ROOT / "hparams" / "DualEdit" / "testbed.yaml", shipped])
    assert cells[2][0] == "LoRA" and cells[2][1].startswith("failed: AttributeError")


@needs_master
def test_a_row_for_each_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("alg_name: LoRA\nmodel_name: testbed\n", encoding="utf-8")
    files = [ROOT / "hparams" / "DualEdit" / "testbed.yaml", bad]
    files[1:1] = [
        ROOT / "examples" / "hparams" / name / "testbed.yaml" for name in ("LoRA", "GRACE")
    ]
    cells = rows_of(tmp_path, files)
    for row, method in zip(cells[2:4], ("LoRA", "GRACE"), strict=True):
        assert row[0] == method
        assert all(0 <= float(cell) <= 100 for cell in row[1:]), row
    assert cells[4][0] == "LoRA" and cells[4][1].startswith("failed: TypeError")
