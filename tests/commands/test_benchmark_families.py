"""One command makes the whole table of EasyEdit's methods, on each family that it has files for."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from easyedit_fixtures import needs_master, shared_workplace
from easyedit_runs import accuracies, editor_of

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.run import METRICS_FILE
from easyedit_dualedit.plugin import register, unregister

pytestmark = needs_master

FAMILIES = ("blip2", "llava-onevision", "qwen2-vl", "qwen3-vl")
SHORT = (
    *("mend.max_iters=2", "serac.max_iters=2", "lora.num_steps=1", "wise.n_iter=1"),
    *("grace.n_iter=1", "ike.k=2"),
)
THEIRS = ("MEND", "SERAC", "LoRA", "WISE", "GRACE", "IKE")
REFUSED = {
    "blip2": {
        "WISE": "needs a picture for every question",
        "GRACE": "gets all rows in one",
    }
}
"""Family -> method -> why its row has no numbers."""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_row_is_measured_or_says_why_not(
    family: str, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # EasyEdit writes its log where it is
    workplace = shared_workplace(family)
    hparams = tmp_path / "hparams.yaml"
    values = workplace.training_settings(tmp_path, batch_size=2, max_iters=2, val_interval=1)
    values |= {"alg": "DualEdit", "gate": "open", "archive": str(workplace.adapters)}
    hparams.write_text(yaml.safe_dump(values), encoding="utf-8")
    command: list[object] = ["benchmark", "--hparams", hparams, "--limit", 2]
    command += ["--data", workplace.records, "--train", workplace.records]
    command += ["--images", workplace.pictures, "--output", tmp_path / "outputs"]
    command += ["--protocols", "easyedit", "--methods", DUALEDIT, *THEIRS]
    for setting in SHORT:
        command += ["--set", setting]
    called = call([str(part) for part in command])
    expected = REFUSED.get(family, {})
    assert called.code == (2 if expected else 0), called.err
    folder = tmp_path / "outputs" / "benchmark"
    methods = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))["methods"]
    assert set(methods) == {UNEDITED, DUALEDIT, *THEIRS}
    failed = {name: row["error"] for name, row in methods.items() if row["status"] != "done"}
    assert set(failed) == set(expected)
    for name, why in expected.items():
        assert why in failed[name]
    for name in set(THEIRS) - set(failed):
        found = methods[name]["protocols"]["easyedit"]
        assert all(found[metric]["n"] == 2 for metric in METRICS)
        assert all(0 <= found[metric]["mean"] <= 100 for metric in METRICS)
    register()
    try:
        editor = editor_of(workplace, gate="open")
        cases, _, _ = editor.edit(**workplace.edit_arguments((0, 1), full=True), verbose=False)
    finally:
        unregister()
    theirs = 100 * fmean(accuracies(cases, "post"))
    ours = methods[DUALEDIT]["protocols"]["easyedit"]["reliability"]["mean"]
    assert ours == pytest.approx(theirs, abs=0.01)
    table = (folder / "results.md").read_text(encoding="utf-8")
    assert all(name in table for name in methods)
