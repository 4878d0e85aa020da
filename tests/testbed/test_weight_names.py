"""Weights of the models of this package are read by every version of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_editors import picture
from tiny_models import tiny_llava_onevision

from easyedit_dualedit import DualEditor, load_model
from easyedit_dualedit.testbed import adapters_folder, model_folder
from easyedit_dualedit.testbed.weight_names import (
    WEIGHTS_FILE,
    fitting,
    publish_names,
    save_halves,
)

PUBLISHED = "vision_tower.vision_model."


def test_the_shipped_model_has_the_published_names():
    names = [name for name in load_file(Path(model_folder()) / WEIGHTS_FILE) if "tower" in name]
    assert names and all(name.startswith(PUBLISHED) for name in names)


def test_it_is_loaded_and_edited():
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    edited = editor.edit(picture(), "What color is the star?", "nation")
    (check,) = edited.check()
    assert check.takes


@pytest.fixture
def tiny() -> Any:
    return tiny_llava_onevision()


def test_what_is_saved_has_published_names_and_comes_back(tiny: Any, tmp_path: Path):
    save_halves(tiny.model, tmp_path, but="lm_head.weight")
    written = load_file(tmp_path / WEIGHTS_FILE)
    assert all(PUBLISHED in name for name in written if "vision_tower" in name)
    assert {value.dtype for value in written.values()} == {torch.float16}
    assert not any(name.endswith("lm_head.weight") for name in written)
    back = type(tiny.model).from_pretrained(tmp_path)
    for name, value in back.model.vision_tower.state_dict().items():
        assert torch.equal(value.half(), tiny.model.model.vision_tower.state_dict()[name].half())


def test_names_of_another_version_fit(tiny: Any, tmp_path: Path):
    own = {k: v for k, v in tiny.model.state_dict().items() if "vision_tower" in k}
    is_published = any(PUBLISHED in name for name in own)
    other = {
        name.replace(PUBLISHED, "vision_tower.")
        if is_published
        else name.replace("vision_tower.", PUBLISHED): value
        for name, value in own.items()
    }
    assert own.keys() and not own.keys() & other.keys()
    assert fitting(tiny.model, other).keys() == fitting(tiny.model, own).keys() == own.keys()
    file = tmp_path / WEIGHTS_FILE
    short = {name.replace(PUBLISHED, "vision_tower."): value for name, value in own.items()}
    save_file(short, file, metadata={"format": "pt"})
    publish_names(file)
    first = file.stat().st_mtime_ns
    assert all(PUBLISHED in name for name in load_file(file))
    publish_names(file)
    assert file.stat().st_mtime_ns == first
