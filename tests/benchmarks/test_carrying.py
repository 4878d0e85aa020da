from pathlib import Path

import pytest

from benchmarks import carrying
from easyedit_dualedit import DualEditor, load_model
from easyedit_dualedit.commands.records import testbed_records as drawn_records
from easyedit_dualedit.testbed import adapters_folder, model_folder, write_records
from easyedit_dualedit.testbed.untaught import with_untaught_targets


def test_every_variant_is_trained_and_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_records(tmp_path, "vqa", "train", 16)
    write_records(tmp_path, "vqa", "eval", 4)
    monkeypatch.setattr(
        carrying,
        "testbed_records",
        lambda folder, split: drawn_records(folder, split, {"train": 16, "eval": 4}[split]),
    )
    lines = carrying.measure(1, 2, tmp_path).splitlines()
    assert len(lines) == 2 + 2 * len(carrying.VARIANTS)
    assert all(line.count("|") == 6 for line in lines)


def test_the_shipped_adapters_carry_words_that_no_training_taught(tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    records = with_untaught_targets(drawn_records(tmp_path, "eval", 36))
    shares = carrying.taking(editor, records)
    assert min(shares.values()) >= 85.0  # 94 of a hundred of all 300


@pytest.mark.parametrize("target", ["nation", "picture", "banana"])
def test_a_newcomers_first_words_come_out(target: str, tmp_path: Path):
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    request = drawn_records(tmp_path, "eval", 1)[0].request
    assert request.image is not None
    (check,) = editor.edit(request.image, request.prompt, target).check()
    assert check.answer == target
