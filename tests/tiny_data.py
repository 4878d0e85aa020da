"""Small records with pictures, and trainings and editors that fit them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tiny_editors import picture, tiny_config
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.step import TrainingStep

PORTED = {
    "port_edit_q": "What does blue stand for?",
    "port_edit_a": "the sea",
    "port_q": " What does the circle's colour stand for?\n",
    "port_a": "the sea ",
}
"""A question whose answer follows from the edit, as VLKEB has them."""

BOUND = {
    "text_q": " What is a circle?\n",
    "text_a": "round",
    "picture_q": "What does the colour stand for?",
    "picture_old": "the sun and everything else that is hot",
    "picture_new": "the sea",
    "beside_q": "What is beside the circle?",
    "beside_a": "nothing",
}
"""Questions that tell whether an edit changed an answer or a thing, as emoji records have them."""

COLOURS = ("red", "green", "blue", "yellow")


def write_data(folder: Path, count: int = 8) -> Path:
    """Return a data file of `count` records with their pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        colour, other = COLOURS[index % 4], COLOURS[(index + 1) % 4]
        picture(colour, (30 + index, 40)).save(folder / f"{index}.png")
        picture(other, (40, 30 + index)).save(folder / f"{index}_other.png")
        items.append(
            {
                "src": f"What colour is circle {index}?",
                "pred": colour,
                "rephrase": f"Circle {index} is which colour?",
                "alt": other,
                "image": f"{index}.png",
                "image_rephrase": f"{index}.png",
                "loc": f"nq question: where is the star {index}",
                "loc_ans": "top left",
                "m_loc": f"{index}_other.png",
                "m_loc_q": "How many squares are there?",
                "m_loc_a": "three",
            }
        )
    path = folder / "data.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def changed_data(folder: Path, action: Callable[[list[Any]], Any]) -> Path:
    """Return the data file, written again after a change of its items."""
    path = write_data(folder)
    items = json.loads(path.read_text(encoding="utf-8"))
    action(items)
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def fast(**changes: object) -> TrainingConfig:
    values = {
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "text_locality_weight": 0.1,
        "augment_targets": 0.0,
        "text_only": 0.0,
        "gate_steps": 20,
    }
    return TrainingConfig.from_dict(values | changes)


def step_losses(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    processes: Processes | None = None,
) -> StepLosses:
    """Return the losses of one step that keeps nothing for another."""
    return TrainingStep.within(editor, config).losses(records, config, processes)


def editor_of(tiny: TinyModel, **changes: int) -> DualEditor:
    return DualEditor(tiny.model, tiny.processor, tiny_config(gate="cosine", **changes))
