"""How adapters were trained, kept beside their curves."""

import subprocess
import sys
from pathlib import Path

from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.recipe import RECIPE_FILE, keep_recipe, read_recipe


def dead_process() -> int:
    """Return the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_recipe_is_read_as_it_was_kept(tmp_path: Path):
    assert read_recipe(tmp_path) is None
    keep_recipe(tmp_path, "a model", TrainingConfig(steps=7), [], validation=3)
    recipe = read_recipe(tmp_path)
    assert recipe is not None
    assert recipe["model"] == "a model"
    assert recipe["training"]["steps"] == 7
    assert recipe["validation_records"] == 3


def test_what_a_killed_process_left_goes(tmp_path: Path):
    """It may be killed right here, after the last step: no other writer of the folder comes."""
    left = tmp_path / f"{RECIPE_FILE}.{dead_process()}.part"
    left.write_text("{", encoding="utf-8")
    keep_recipe(tmp_path, "a model", TrainingConfig(), [], validation=0)
    assert [path.name for path in tmp_path.iterdir()] == [RECIPE_FILE]
