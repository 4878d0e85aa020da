"""EasyEdit's editor and datasets on videos, sets of pictures and text alone."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from easyedit_fixtures import Workplace, needs_master, shared_workplace
from easyedit_runs import editor_of
from tiny_ads_edit import KINDS, ads_edit_file
from tiny_videos import frames, write_clip

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.shown_content import shown_digest
from easyedit_dualedit.model.videos import Video
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.plugin.requests import requested_queries

FAMILIES = ("llava-onevision", "qwen2-vl")

with_easyedit = [needs_master, pytest.mark.usefixtures("host", "elsewhere")]


@pytest.mark.parametrize("form", ["frames", "array", "floats in a list", "video"])
def test_a_video_in_each_form_becomes_a_query(form: str) -> None:
    images = frames("red", "blue", "blue", "red")
    array = np.stack([np.asarray(image) for image in images])
    floats = torch.from_numpy(array).permute(0, 3, 1, 2).float()
    given: Any = {
        "frames": images,
        "array": array,
        "floats in a list": [floats],
        "video": Video(images),
    }[form]
    request = {"prompt": "What?", "target": "b", "image": given, "file_type": "video"}
    (query,) = requested_queries(request)
    assert query.video is not None
    assert shown_digest(query.video) == shown_digest(Video(images))


def arguments_of(path: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, Any]:
    """Return what EasyEdit's example for ADS-Edit gives to the editor."""
    items = [item for item in json.loads(path.read_text()) if item["image_type"] in kinds]

    def paths(item: dict[str, Any], field: str) -> Any:
        value = item.get(field)
        if isinstance(value, str) or value is None:
            return None if value is None else str(path.parent / value)
        names = value.values() if isinstance(value, dict) else value
        return [str(path.parent / name) for name in names]

    return {
        "prompts": [item["src"] for item in items],
        "targets": [item["alt"] for item in items],
        "image": [paths(item, "image") for item in items],
        "rephrase_prompts": [item["rephrase"] for item in items],
        "rephrase_image": [paths(item, "image_rephrase") for item in items],
        "file_type": [item["image_type"] for item in items],
        "locality_inputs": {
            "text": {
                "prompt": [item["loc"] for item in items],
                "ground_truth": [item["loc_ans"] for item in items],
            },
            "vision": {
                "prompt": [item["m_loc_q"] for item in items],
                "ground_truth": [item["m_loc_a"] for item in items],
                "image": [paths(item, "m_loc") for item in items],
            },
        },
    }


@pytest.mark.parametrize("family", FAMILIES)
class TestMaster:
    pytestmark = with_easyedit

    @pytest.fixture
    def workplace(self, family: str) -> Workplace:
        return shared_workplace(family)

    def test_the_editor_edits_every_kind(self, workplace: Workplace, tmp_path: Path) -> None:
        editor = editor_of(workplace)
        given = arguments_of(ads_edit_file(tmp_path))
        metrics, edited, _ = editor.edit(**given, sequential_edit=False, verbose=False)
        assert len(metrics) == 4
        for case in metrics:
            assert {"rewrite_acc", "rephrase_acc", "image_rephrase_acc"} <= set(case["post"])
            assert {"locality_acc", "multimodal_locality_acc"} <= set(case["post"])
        assert len(edited.edits) == 1

    def test_a_video_file_is_edited(self, workplace: Workplace, tmp_path: Path) -> None:
        pytest.importorskip("av")
        editor = editor_of(workplace)
        path = str(write_clip(tmp_path / "clip.mp4"))
        metrics, edited, _ = editor.edit(
            prompts=["What happens?"],
            targets=["a star"],
            image=[path],
            file_type=["video"],
            verbose=False,
        )
        assert 0 <= float(metrics[0]["post"]["rewrite_acc"]) <= 1
        assert edited.edits[0].request.video is not None

    def test_its_dataset_is_edited(self, workplace: Workplace, tmp_path: Path) -> None:
        editor = editor_of(workplace, coco_image=str(tmp_path))
        records = find_host().package.ADSDataset(
            str(ads_edit_file(tmp_path)), config=editor.hparams
        )
        assert len(records) == 4
        metrics, _, _ = editor.edit_dataset(records, verbose=False)
        assert len(metrics) == 4 and "rewrite_acc" in metrics[0]["post"]

    def test_its_dataset_takes_no_picture_from_elsewhere_unless_told(
        self, workplace: Workplace, tmp_path: Path
    ) -> None:
        file = ads_edit_file(tmp_path / "data", kinds=("single-image",))
        items = json.loads(file.read_text())
        (tmp_path / "data" / items[1]["image"]).rename(tmp_path / "elsewhere.png")
        (tmp_path / "data" / items[2]["image"]).rename(tmp_path / "another.png")
        items[1]["image"], items[2]["image"] = "../elsewhere.png", str(tmp_path / "another.png")
        file.write_text(json.dumps(items))
        settings = workplace.settings(
            archive=str(workplace.adapters), coco_image=str(tmp_path / "data")
        )
        hparams = DualEditMultimodalHparams.from_dict(settings)
        with pytest.raises(DataError, match="record 1, .*record 2, .*allow_outside: true"):
            find_host().package.ADSDataset(str(file), config=hparams)
        hparams = DualEditMultimodalHparams.from_dict(settings | {"allow_outside": True})
        records = find_host().package.ADSDataset(str(file), config=hparams)
        assert all(records[place]["image"] for place in (1, 2))

    @pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
    def test_a_trainer_takes_its_dataset(
        self, workplace: Workplace, trainer: str, tmp_path: Path
    ) -> None:
        """Videos, pictures, a picture and text in one batch."""
        hparams = DualEditMultimodalTrainingHparams.from_dict(
            workplace.training_settings(
                tmp_path / "results",
                batch_size=2,
                max_iters=3,
                val_interval=2,
                gate_steps=0,
                coco_image=str(tmp_path / "data"),
            )
        )
        package = find_host().package
        records = package.ADSDataset(str(ads_edit_file(tmp_path / "data")), config=hparams)
        getattr(package, trainer)(hparams, records, records).run()
        assert (tmp_path / "results" / "results.json").is_file()


@needs_master
@pytest.mark.usefixtures("host", "elsewhere")
def test_upstreams_dataset_can_be_imported() -> None:
    name = f"{find_host().package.__name__}.dataset.adsedit"
    assert importlib.import_module(name).ADSDataset is find_host().package.ADSDataset
