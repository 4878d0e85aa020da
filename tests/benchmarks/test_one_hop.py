import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.one_hop import ASKED, main, measure, one_hop_record, teach
from easyedit_dualedit import DualEditor, Query, load_model
from easyedit_dualedit.commands.records import testbed_records as drawn_records
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import DualEditConfig, GateConfig
from easyedit_dualedit.testbed import adapters_folder, model_folder
from easyedit_dualedit.train.config import TrainingConfig


def _with_hops(records: list[Record]) -> list[Record]:
    """Return records whose question one hop further is answered by the edit's own target."""
    return [replace(record, portability=(record.text_rephrase,)) for record in records]


def test_the_question_one_hop_further_takes_the_place_of_the_text_rephrase(tmp_path: Path):
    first, second = drawn_records(tmp_path, "train", 2)
    further = Query("What is it for?", first.request.image, "nothing")
    made = one_hop_record(replace(first, portability=(further,)))
    assert made.text_rephrase is further
    assert made.request == first.request
    assert one_hop_record(second) is second


def test_answers_one_hop_further_are_told_from_the_edits_own_target(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = _with_hops(drawn_records(tmp_path, "eval", 3))
    found = measure(editor, records)
    assert list(found) == list(ASKED)
    assert {name: each.mean for name, each in found.items()} == dict.fromkeys(ASKED, 100.0)
    (record, *_) = records
    wrong = replace(record, portability=(replace(record.text_rephrase, target="picture"),))
    found = measure(editor, [wrong])
    assert (found["one hop"].mean, found[ASKED[1]].mean) == (0.0, 100.0)


def test_targets_that_are_drawn_are_taught_without_a_hop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model, processor = load_model(str(model_folder()))
    config = DualEditConfig(
        text_layer=2, vision_layer=3, width=32, heads=4, gate=GateConfig("open")
    )
    torch.manual_seed(0)
    editor = DualEditor(model, processor, config)
    records = [
        replace(record, portability=(Query("What is it for?", record.request.image, "nothing"),))
        for record in drawn_records(tmp_path, "train", 12)
    ]
    seen: list[Record] = []

    def keep(_: DualEditor, taught: list[Record], given: TrainingConfig, checkpoint: Path) -> None:
        assert given.augment_targets == 0.0
        seen.extend(taught)
        checkpoint.write_bytes(b"")

    monkeypatch.setattr("benchmarks.one_hop.train", keep)
    taught = teach(editor, records, TrainingConfig(augment_targets=0.5), tmp_path / "taught")
    assert DualEditor.load(model, processor, tmp_path / "taught").config == taught.config
    hops = [record.text_rephrase.target == "nothing" for record in seen]
    drawn = [made.request != given.request for made, given in zip(seen, records, strict=True)]
    assert any(hops) and any(drawn)
    assert hops == [not each for each in drawn]


def test_records_without_such_questions_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = ["one_hop", "--hparams", "testbed", "--data", str(tmp_path), "--output", "x"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "have no questions one hop further" in capsys.readouterr().err
