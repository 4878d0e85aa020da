"""What was trained for the emoji model and travels with the package is whole and fits together."""

import json

from safetensors import safe_open

from easyedit_dualedit.method.archive import Archive
from easyedit_dualedit.testbed.emoji.architecture import TowerShape
from easyedit_dualedit.testbed.emoji.assembling import (
    CHANGES_FILE,
    EYES_FILE,
    SHAPE_FILE,
    weights_folder,
)
from easyedit_dualedit.testbed.emoji.places import adapters_folder

_MOST_BYTES = 40 * 2**20


def test_the_tower_has_the_shape_that_is_written_beside_it():
    shape = TowerShape(**json.loads((weights_folder() / SHAPE_FILE).read_text()))
    with safe_open(weights_folder() / EYES_FILE, "pt") as eyes:
        shapes = {name: eyes.get_slice(name).get_shape() for name in eyes.keys()}  # noqa: SIM118
    units = [value for name, value in shapes.items() if name.endswith("mlp.fc1.weight")]
    assert units == [[shape.units, shape.width]] * shape.layers


def test_the_adapters_are_whole_and_their_gate_is_taught():
    archive = Archive.load(adapters_folder("default"))
    assert archive.config.gate.kind == "learned"
    assert archive.config.word_path and archive.config.answer_tokens
    assert archive.training_targets and len(archive.training_targets) > 1000
    assert any(name.startswith("gate") for name in archive.tensors)


def test_all_of_it_is_small():
    folders = (weights_folder(), adapters_folder("default"))
    files = [path for folder in folders for path in folder.iterdir()]
    assert {EYES_FILE, CHANGES_FILE, "adapters.safetensors"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < _MOST_BYTES
