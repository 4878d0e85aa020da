"""The notebook, as it lies in the repository and as a reader runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import needs_easyedit
from markdown_pages import ROOT

NOTEBOOK = ROOT / "examples" / "dualedit_in_easyedit.ipynb"


def test_it_is_saved_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def said(cell: Any) -> str:
    """Return what a cell printed and showed, as text."""
    texts = [output.get("text", "") for output in cell.outputs]
    texts += [output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "".join(texts)


@needs_easyedit
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "nbclient, nbformat and ipykernel (extra test) are not all installed"
    nbformat = pytest.importorskip("nbformat", reason=why)
    nbclient = pytest.importorskip("nbclient", reason=why)
    pytest.importorskip("ipykernel", reason=why)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    by_start = {cell.source.splitlines()[0]: said(cell) for cell in cells}
    assert "'rewrite_acc': 1.0" in by_start["def arguments(chosen):"]
    table = by_start["METRICS = {"].splitlines()
    reliability = next(line for line in table if line.startswith("reliability")).split()
    assert float(reliability[1]) < 50 and float(reliability[2]) == 100
    plot = next(cell for cell in cells if cell.source.startswith("import matplotlib"))
    assert any("image/png" in out.get("data", {}) for out in plot.outputs)
    assert [line.split()[-1] for line in by_start["asked = ["].splitlines()] == ["True", "False"]
    assert "10 of 10 edits take" in by_start["from easyedit_dualedit import EditMemory"]
