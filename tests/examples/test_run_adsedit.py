"""EasyEdit's own example for ADS-Edit, with one import and one line of hyperparameters changed."""

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import needs_master, shared_workplace
from tiny_ads_edit import ads_edit_file
from workplace import Workplace

from easyedit_dualedit.measure.run import METRICS_FILE
from easyedit_dualedit.plugin import unregister

IMPORT = "from easyeditor import BaseEditor, MultimodalTrainer, MultimodalEditor\n"
HPARAMS = "WISEMultimodalHyperParams.from_hparams('./hparams/WISE/llavaov-7b.yaml')"
NAMES = {
    "reliability": "rewrite_acc",
    "text_generality": "rephrase_acc",
    "image_generality": "image_rephrase_acc",
    "text_locality": "locality_acc",
    "image_locality": "multimodal_locality_acc",
}


@needs_master
@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_its_numbers_are_those_of_our_own_command(
    family: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Any,
) -> None:
    place = shared_workplace(family)
    work = Workplace(tmp_path)
    ads_edit_file(work.images, 4, ("video",)).rename(work.data)
    (tmp_path / "model").symlink_to(place.model)
    learning = {"lr": 0.02, "gate_steps": 10, "augment_targets": 0.0}
    trained = call(work.train("--steps", 60, "--validation", 0, **learning))
    assert trained.code == 0, trained.err
    hparams = work.hparams(model_name=str(place.model), archive=str(work.adapters))
    source = (Path(os.environ["EASYEDIT_HOME"]) / "examples" / "run_adsedit.py").read_text()
    assert source.count(IMPORT) == source.count(HPARAMS) == 1
    ours = "from easyedit_dualedit import register; register()\n" + IMPORT
    ours += "from easyeditor import DualEditMultimodalHparams\n"
    source = source.replace(IMPORT, ours)
    source = source.replace(HPARAMS, f"DualEditMultimodalHparams.from_hparams({str(hparams)!r})")
    (tmp_path / "run.py").write_text(source)
    (work.images / "ADSedit").mkdir()
    (work.images / "ADSedit" / "test.json").write_text(work.data.read_text())
    monkeypatch.chdir(work.images)
    told: list[Any] = []
    monkeypatch.setattr("builtins.print", lambda *values, **_: told.append(values))
    try:
        runpy.run_path(str(tmp_path / "run.py"), run_name="__main__")
    finally:
        unregister()
    monkeypatch.undo()
    metrics = told[-1][0][0]["post"]
    theirs = {ours: 100 * float(metrics[name]) for ours, name in NAMES.items()}
    assert theirs["reliability"] > 50, "equal numbers of an edit that takes"
    arguments: list[Any] = [
        "benchmark",
        "--hparams",
        hparams,
        "--data",
        work.data,
        "--images",
        work.images,
    ]
    arguments += ["--limit", 1, "--methods", "dualedit", "--protocols", "easyedit"]
    arguments += ["--output", tmp_path / "out"]
    done = call([str(each) for each in arguments])
    assert done.code == 0, done.err
    found = json.loads(next((tmp_path / "out").rglob(METRICS_FILE)).read_text())["methods"]
    measured = found["DualEdit"]["protocols"]["easyedit"]
    assert {name: measured[name]["mean"] for name in NAMES} == pytest.approx(theirs)
