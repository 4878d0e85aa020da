"""The example script, run as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

from easyedit_fixtures import needs_master
from markdown_pages import ROOT

from easyedit_dualedit.testbed import write_records

SCRIPT = ROOT / "examples" / "compare_in_easyedit.py"


@needs_master
def test_a_row_for_each_file(tmp_path: Path) -> None:
    data = write_records(tmp_path / "data", "vqa", "eval", 2)
    bad = tmp_path / "bad.yaml"
    bad.write_text("alg_name: LoRA\nmodel_name: testbed\n", encoding="utf-8")
    files = [ROOT / "hparams" / "DualEdit" / "testbed.yaml", bad]
    files[1:1] = [
        ROOT / "examples" / "hparams" / name / "testbed.yaml" for name in ("LoRA", "GRACE")
    ]
    command = [sys.executable, SCRIPT, "--data", data, "--images", tmp_path / "data" / "images"]
    command += ["--model", "testbed", "--device", "cpu", "--limit", "2", "--hparams", *files]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=tmp_path,
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
    for row, method in zip(cells[2:4], ("LoRA", "GRACE"), strict=True):
        assert row[0] == method
        assert all(0 <= float(cell) <= 100 for cell in row[1:]), row
    assert cells[4][0] == "LoRA" and cells[4][1].startswith("failed: TypeError")
