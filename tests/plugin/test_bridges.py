"""What is replaced in EasyEdit's master, and what it still gets wrong by itself."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from easyedit_fixtures import Workplace, needs_master, shared_workplace
from easyedit_runs import dataset_of, editor_of, trained
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from easyedit_dualedit.errors import DataError, ModelLoadError
from easyedit_dualedit.plugin import find_host, register, unregister

pytestmark = [needs_master, pytest.mark.usefixtures("host", "elsewhere")]


def test_pictures_are_read_as_rgb_and_their_files_closed(workplace: Workplace) -> None:
    records = dataset_of(workplace, editor_of(workplace).hparams)
    for name in ("image", "image_rephrase", "multimodal_locality_image"):
        assert records[0][name].mode == "RGB"
        assert getattr(records[0][name], "fp", None) is None
    # Fails once upstream closes them, and then the replacement may go.
    module = find_host().module("dataset.processor.llavaov_processors")
    left_open = module.LLaVAOneVisionProcessor.__call__.__wrapped__.__wrapped__(
        module.LLaVAOneVisionProcessor(), workplace.pictures / "m_loc_0.png", "image"
    )
    assert left_open.fp is not None
    assert left_open.mode == "P"
    left_open.close()


@pytest.mark.parametrize("form", ["path", "picture"])
@pytest.mark.parametrize("kind", ["image", "multi-image", "video"])
@pytest.mark.parametrize("reader", ["llavaov", "qwen2vl"])
def test_photos_are_read_upright(reader: str, kind: str, form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = tmp_path / "photo.png"
    sideways = Image.new("RGBA", (112, 56), "white")
    sideways.paste("red", (0, 0, 56, 56))
    sideways.save(path, exif=exif)
    names = {"llavaov": "LLaVAOneVisionProcessor", "qwen2vl": "Qwen2VLProcessor"}
    module = find_host().module(f"dataset.processor.{reader}_processors")
    read = getattr(module, names[reader])()
    file = str(path) if form == "path" else Image.open(path)
    found = read(file if kind == "image" else [file, file], kind)
    first = found[0] if isinstance(found, list | tuple) else found
    pixels = torch.tensor(np.asarray(first)).float().squeeze()
    if pixels.ndim == 4:  # of frames, channels before rows
        pixels = pixels[0].permute(1, 2, 0)
    height, width = pixels.shape[:2]
    assert kind != "image" or height > width
    upper, lower = pixels[height // 4, width // 2], pixels[-height // 4, width // 2]
    assert upper[1] < 100 < lower[1], "red above, white below"


@pytest.mark.parametrize("data", ["VQADataset", "CaptionDataset"])
@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
def test_a_dataset_holds_no_pictures(
    family: str, data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    workplace = shared_workplace(family)
    hparams = editor_of(workplace).hparams
    decoded = []
    load = PngImageFile.load
    monkeypatch.setattr(
        PngImageFile, "load", lambda self: (decoded.append(self.filename), load(self))[1]
    )
    records = dataset_of(workplace, hparams, data)
    assert len(records) == 4 and decoded == []
    item = records[1]
    assert decoded and not isinstance(item["image"], str)
    assert isinstance(next(iter(records._data))["image"], str)
    with pytest.raises(IndexError):
        records[4]


def test_a_dataset_says_which_picture_is_not_there(workplace: Workplace, tmp_path: Path) -> None:
    hparams = editor_of(workplace).hparams
    hparams.rephrase_image = str(tmp_path)
    with pytest.raises(DataError, match="no picture at .*rephrase_0.png"):
        dataset_of(workplace, hparams)


def test_master_still_does_not_know_llava_1_5(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fails once upstream does, and then the bridge may go.
    workplace = shared_workplace("llava")
    hparams = editor_of(workplace).hparams
    unregister()
    try:
        monkeypatch.setitem(register().editors, "MEND", lambda *_, **__: None)
        unregister()
        hparams.alg_name = "MEND"
        with pytest.raises(AttributeError, match="no attribute 'model'"):
            find_host().package.MultimodalEditor(hparams)
        with pytest.raises((UnboundLocalError, ValueError)):
            dataset_of(workplace, hparams)
    finally:
        register()


@pytest.mark.parametrize("family", ["llava", "qwen2-vl"])
def test_a_picture_may_be_a_path_and_one_that_is_not_there_is_named(
    family: str, tmp_path: Path
) -> None:
    workplace = shared_workplace(family)
    editor = editor_of(workplace)
    arguments = workplace.edit_arguments((0,), full=True)
    arguments["image"] = [Path(arguments["image"][0])]
    _, edited, _ = editor.edit(**arguments)
    assert len(edited.edits) == 1
    with pytest.raises(DataError, match="no picture at nothing.png"):
        editor.edit(**arguments | {"image": "nothing.png"})
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(DataError, match=r"no.png cannot be read as a picture"):
        editor.edit(**arguments | {"image": tmp_path / "no.png"})


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_models_that_easyedit_loads_itself_are_quantised_too(family: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    workplace = shared_workplace(family)
    made = trained(workplace, tmp_path, "DualEditTrainer", quantization="8bit", gate_steps=0)
    assert torch.int8 in {value.dtype for value in made.model.model.parameters()}
    editor = editor_of(workplace, made.save_path, quantization="8bit")
    assert torch.int8 in {value.dtype for value in editor.model.parameters()}
    _, edited, _ = editor.edit(**workplace.edit_arguments((0,), full=True))
    assert len(edited.edits) == 1


def test_other_methods_keep_masters_collation() -> None:
    workplace = shared_workplace("llava-onevision")
    hparams = editor_of(workplace).hparams

    class Others:
        model_name = name = hparams.model_name
        device = "cpu"
        dtype = torch.float32
        coco_image = rephrase_image = str(workplace.pictures)

    records = dataset_of(workplace, Others(), size=1)
    assert "labels" in records.collate_fn([records[0]])["edit_inner"]


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    workplace = shared_workplace("llava")
    place = tmp_path / "llava-1.5-7b-hf"
    with pytest.raises(ModelLoadError, match="no vision-language model at"):
        editor_of(workplace, model_name=str(place))
    shutil.copytree(workplace.model, place)
    assert editor_of(workplace, model_name=str(place)).model is not None
