"""EasyEdit's ComprehendEditDataset, for models that upstream's class knows nothing of."""

import json
from pathlib import Path
from typing import Any

import pytest
from easyedit_fixtures import needs_master, shared_workplace
from easyedit_runs import editor_of
from tiny_comprehend_edit import comprehend_edit_folder
from tiny_families import FAMILIES

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)

pytestmark = [needs_master, pytest.mark.usefixtures("host", "elsewhere")]


def dataset_of(folder: Path, hparams: Any, **options: Any) -> Any:
    return find_host().package.ComprehendEditDataset(str(folder), config=hparams, **options)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_editor_edits_its_records(family: str, tmp_path: Path) -> None:
    folder = comprehend_edit_folder(tmp_path)
    editor = editor_of(shared_workplace(family))
    records = dataset_of(folder, editor.hparams, size=2, mode="test", topk=1)
    assert [records[place]["img_topk"] for place in range(2)] == [[1], [0]]
    assert records[0]["locality_ground_truth"] == "top left"
    metrics, edited, _ = editor.edit_dataset(records, verbose=False)
    assert len(metrics) == 2
    assert {"rewrite_acc", "rephrase_acc", "locality_acc"} <= set(metrics[0]["post"])
    assert len(edited.edits) == 1


def test_no_picture_from_elsewhere_is_read_unless_told(tmp_path: Path) -> None:
    folder = comprehend_edit_folder(tmp_path / "data")
    file = folder / "ComprehendEdit_train.json"
    items = json.loads(file.read_text())
    (folder / items[0]["image"]).rename(tmp_path / "elsewhere.jpg")
    items = [{**items[0], "image": "../elsewhere.jpg"}]
    file.write_text(json.dumps(items))
    workplace = shared_workplace("llava")
    settings = workplace.settings(archive=str(workplace.adapters))
    with pytest.raises(DataError, match="leads out of the folder.*allow_outside: true"):
        dataset_of(folder, DualEditMultimodalHparams.from_dict(settings), mode="train")
    hparams = DualEditMultimodalHparams.from_dict(settings | {"allow_outside": True})
    assert len(dataset_of(folder, hparams, mode="train")) == 1


@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_a_trainer_takes_them(trainer: str, tmp_path: Path) -> None:
    folder = comprehend_edit_folder(tmp_path / "data")
    workplace = shared_workplace("llava")
    hparams = DualEditMultimodalTrainingHparams.from_dict(
        workplace.training_settings(tmp_path / "results", max_iters=3, val_interval=2, gate_steps=0)
    )
    train = dataset_of(folder, hparams, mode="train", topk=-1)
    evaluated = dataset_of(folder, hparams, mode="test", topk=5)
    made = getattr(find_host().package, trainer)(hparams, train, evaluated)
    made.run()
    assert (tmp_path / "results" / "results.json").is_file()
