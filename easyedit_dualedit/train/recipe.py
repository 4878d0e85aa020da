"""How adapters were trained, in a file beside their curves: what a model card tells of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from easyedit_dualedit import __version__
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.files import clear_parts, read_json, write_json
from easyedit_dualedit.train.checkpoint import records_digest
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.curves import LINES_FILE, read_curves

RECIPE_FILE = "recipe.json"


def keep_recipe(
    folder: Path, model: str, config: TrainingConfig, records: Sequence[Record], validation: int
) -> None:
    """Write how adapters were trained.

    Args:
        folder: of the training's curves, which tell how many steps it took and which it kept.
        model: its name, as the hyperparameters have it.
        config: of the training.
        records: that it trained on.
        validation: how many records it set aside.

    Raises:
        DataError: if the file cannot be written.
    """
    lines = read_curves(folder) if (folder / LINES_FILE).is_file() else []
    recipe = {
        "model": model,
        "records": len(records),
        "data": records_digest(records),
        "validation_records": validation,
        "steps_taken": max((line["step"] for line in lines), default=config.steps),
        "step_kept": next((line["step"] for line in reversed(lines) if line.get("is_best")), None),
        "training": asdict(config),
        "versions": {
            "easyedit_dualedit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    clear_parts(folder)  # of a process that was killed in here, after its last step
    write_json(folder / RECIPE_FILE, json.loads(json.dumps(recipe, default=str)))


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """Return how adapters were trained; None where no file tells it.

    Raises:
        DataError: if the file is damaged.
    """
    return read_json(folder / RECIPE_FILE)
