"""ComprehendEdit's files in the commands `evaluate` and `benchmark`."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_comprehend_edit import comprehend_edit_folder
from workplace import Workplace

from easyedit_dualedit.experiments.benchmark_folder import UNEDITED
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.run import METRICS_FILE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return comprehend_edit_folder(tmp_path / "ComprehendEdit")


def methods_of(work: Workplace, command: str) -> dict[str, Any]:
    path = work.folder / "outputs" / command / METRICS_FILE
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["methods"]
    return found


def command(work: Workplace, name: str, data: Path, folder: Path, *options: object) -> list[str]:
    hparams = work.hparams(archive=str(work.adapters), gate={"kind": "cosine", "threshold": 0.9999})
    parts = [name, "--hparams", hparams, "--data", data, "--images", folder]
    return [str(part) for part in (*parts, "--output", work.folder / "outputs", *options)]


def test_evaluate_measures_what_is_near_an_edit(work: Workplace, folder: Path, call: Any) -> None:
    data = folder / "ComprehendEdit_test.json"
    called = call(command(work, "evaluate", data, folder, "--protocols", "comprehendedit"))
    assert called.code == 0, called.err
    methods = methods_of(work, "evaluate")
    assert list(methods) == [UNEDITED, DUALEDIT]
    for method in methods.values():
        found = method["protocols"]
        assert {"generate", "comprehendedit"} <= set(found)
        # Three of four records have an answer; a record's neighbours count as one record.
        assert {value["n"] for value in found["generate"].values()} == {3}
        assert {name: value["n"] for name, value in found["comprehendedit"].items()} == {
            "knowledge_generalisation": 3,
            "knowledge_preservation": 3,
        }
    untouched = methods[UNEDITED]["protocols"]["comprehendedit"]["knowledge_preservation"]
    assert untouched["mean"] == 100


def test_benchmark_compares_on_them(work: Workplace, folder: Path, call: Any) -> None:
    data, train = (folder / f"ComprehendEdit_{mode}.json" for mode in ("test", "train"))
    options = ("--train", train, "--methods", "dualedit", "ft-last-layer")
    called = call(
        command(work, "benchmark", data, folder, *options, "--set", "ft-last-layer.steps=2")
    )
    assert called.code == 0, called.err
    methods = methods_of(work, "benchmark")
    assert list(methods) == [UNEDITED, DUALEDIT, "FT, last layer"]
    for method in methods.values():
        assert method["status"] == "done", method
        assert {"generate", "visedit", "easyedit", "comprehendedit"} <= set(method["protocols"])
        near = method["protocols"]["comprehendedit"]
        assert {value["n"] for value in near.values()} == {3}
    table = (work.folder / "outputs" / "benchmark" / "results.md").read_text(encoding="utf-8")
    assert "knowledge generalisation" in table and "knowledge preservation" in table


def test_records_without_neighbours_are_refused_under_the_protocol(
    work: Workplace, folder: Path, call: Any
) -> None:
    data = folder / "ComprehendEdit_train.json"
    refused = call(command(work, "evaluate", data, folder, "--protocols", "comprehendedit"))
    assert "none of the 3 records has the field img_topk" in refused.error


def test_pictures_of_neighbours_matter_under_the_protocol_alone(
    work: Workplace, folder: Path, call: Any
) -> None:
    # Record 0 shows 0 and 2; 1 and 3 are near it.
    (folder / "GQA" / "images" / "3.jpg").unlink()
    data = folder / "ComprehendEdit_test.json"
    given = command(work, "evaluate", data, folder, "--limit", 1)
    refused = call([*given, "--protocols", "comprehendedit"])
    assert refused.code == 2 and "record 0, field img_topk or txt_topk" in refused.error
    called = call(given)
    assert called.code == 0, called.err
