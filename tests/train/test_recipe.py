"""How adapters were trained, kept beside their curves."""

import subprocess
import sys
from pathlib import Path

from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.curves import Curves
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


def test_it_tells_how_many_steps_were_taken_and_which_was_kept(tmp_path: Path):
    keep_recipe(tmp_path, "a model", TrainingConfig(steps=9), [], validation=0)
    alone = read_recipe(tmp_path)
    assert alone is not None and (alone["steps_taken"], alone["step_kept"]) == (9, None)
    curves = Curves(tmp_path)
    curves.begin(0)
    for step, is_best in ((0, True), (3, True), (6, False)):
        curves.add({"step": step, "part": "validation", "is_best": is_best})
    keep_recipe(tmp_path, "a model", TrainingConfig(steps=9), [], validation=3)
    recipe = read_recipe(tmp_path)
    assert recipe is not None and (recipe["steps_taken"], recipe["step_kept"]) == (6, 3)


def test_what_a_killed_process_left_goes(tmp_path: Path):
    """It may be killed right here, after the last step: no other writer of the folder comes."""
    left = tmp_path / f"{RECIPE_FILE}.{dead_process()}.part"
    left.write_text("{", encoding="utf-8")
    keep_recipe(tmp_path, "a model", TrainingConfig(), [], validation=0)
    assert [path.name for path in tmp_path.iterdir()] == [RECIPE_FILE]
