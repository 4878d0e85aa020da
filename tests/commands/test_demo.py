"""The main command on the testbed, and what an edit of the testbed model must show."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_dualedit import testbed
from easyedit_dualedit.commands.records import testbed_records as records_of_testbed
from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin import is_available

SCRIPT = Path(__file__).parents[2] / "run_multimodal_edit.py"

needs_easyedit = pytest.mark.skipif(
    not is_available(), reason="EasyEdit is neither installed nor named by EASYEDIT_HOME"
)


@pytest.fixture(scope="module")
def model_and_processor() -> tuple[Any, Any]:
    return load_model(str(testbed.model_folder()))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return records_of_testbed(tmp_path_factory.mktemp("testbed"), "eval")


def editor_of(loaded: tuple[Any, Any], gate: GateConfig | None = None) -> DualEditor:
    return DualEditor.load(*loaded, testbed.adapters_folder("default"), gate=gate)


@needs_easyedit
def test_the_main_command_prints_a_table_and_writes_the_numbers(tmp_path: Path):
    # A process of its own: EasyEdit stays registered with, and sets up logging.
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "15", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "published preset (reads the label)" in shown and shown.count("edit ") >= 3
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())["methods"]
    assert len(metrics) == 5
    for method in metrics.values():
        assert set(method["protocols"]) == set(EVALUATION_PROTOCOLS)
        for values in method["protocols"].values():
            assert set(values) == {*METRICS, AVERAGE}
            for value in values.values():
                assert value["n"] == 15 and value["low"] <= value["mean"] <= value["high"]
    assert len(list((tmp_path / "demo" / "cases").glob("*.json"))) == 15
    # 15 of the 300 records leave room for chance; the whole command is checked by .ci/run.
    found = metrics[DUALEDIT]["protocols"]["generate"]
    assert found["reliability"]["mean"] >= 93 and found["text_generality"]["mean"] >= 93
    assert found["image_generality"]["mean"] >= 85 and found["image_locality"]["mean"] >= 93
    assert found["text_locality"]["mean"] >= 98
    untaught = json.loads((tmp_path / "demo" / "untaught" / "metrics.json").read_text())
    assert untaught["targets"]["unseen"] >= 14
    carried = untaught["methods"][DUALEDIT]["protocols"]["generate"]
    assert carried["reliability"]["mean"] >= 85 and carried["text_locality"]["mean"] >= 98
    unedited = metrics["unedited"]["protocols"]["generate"]
    assert unedited["reliability"]["mean"] <= 5 and unedited["image_locality"]["mean"] == 100


def test_the_model_is_bit_identical_after_many_edits_and_undos(
    model_and_processor: tuple[Any, Any], records: list[Record]
):
    model, _ = model_and_processor
    editor = editor_of(model_and_processor)
    batch = editor.encoder.encode(records[0].queries)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(**batch.inputs).logits
        changed = 0
        for record in records[:60]:
            edited = editor.edited(editor.read([record.request]))
            own = editor.encoder.encode([record.request])
            after = edited(layout=own.layout, **own.inputs).logits
            changed += not torch.equal(after, model(**own.inputs).logits)
        assert changed == 60, "every edit must change its own request"
        assert torch.equal(model(**batch.inputs).logits, before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_target_of_a_query_moves_the_label_reading_gate_alone(
    model_and_processor: tuple[Any, Any], records: list[Record]
):
    """Only the text of the query's target changes; the edit and the prompt stay."""
    moved = {"learned": 0, "cosine": 0, "last-token": 0}
    for kind in moved:
        threshold = 0.8 if kind == "last-token" else None
        gate = GateConfig(kind=kind, threshold=threshold)
        editor = editor_of(model_and_processor, gate)
        for record, other in zip(records[:20], records[1:21], strict=True):
            edited = editor.edited(editor.read([record.request]))
            query = record.image_rephrase
            decisions, logits = [], []
            for target in (record.request.target, other.text_locality.target):
                row = type(query)(query.prompt, query.image, target)
                batch = editor.encoder.encode([row], padding_side="right")
                routing = edited.route(layout=batch.layout, **batch.inputs)
                decisions.append(bool(routing.is_open[0]))
                with torch.no_grad():
                    output = edited(layout=batch.layout, **batch.inputs).logits
                logits.append(output[0, : int(batch.layout.gate[0]) + 1])
            same = torch.allclose(*logits, atol=1e-4, rtol=1e-4)
            moved[kind] += decisions[0] != decisions[1] or not same
    assert moved["cosine"] == moved["learned"] == 0
    assert moved["last-token"] >= 3, "an answer alone opens or shuts this gate"


@pytest.mark.parametrize("preset", ["default", "published"])
def test_the_shipped_adapters_belong_to_the_shipped_model(
    model_and_processor: tuple[Any, Any], preset: str
):
    editor = DualEditor.load(*model_and_processor, testbed.adapters_folder(preset))
    assert editor.gate.config.reads_label == (preset == "published")
    assert -1.0 < editor.gate.threshold < 1.0


def test_steps_without_a_training_are_refused(tmp_path: Path, call: Any):
    refused = call(["demo", "--steps", "3", "--output", str(tmp_path / "new")])
    assert refused.code == 2 and "--steps goes with --train" in refused.error
    assert not (tmp_path / "new").exists()
