"""Targets with white space around them: EasyEdit scores its tokens, and edits say them."""

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from easyedit_fixtures import HAS_MASTER, Workplace, needs_easyedit, needs_release, shared_workplace
from easyedit_runs import trained

from easyedit_dualedit import load_model
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.legacy import LegacySamples
from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.world import draw_scene

pytestmark = [needs_easyedit, pytest.mark.usefixtures("host", "elsewhere")]

QUESTION = "What is the green thing?"
TARGETS = ("red", " red", "red ", " red ", "red\n")


@cache
def editor() -> Any:
    """Return EasyEdit's editor of the shipped model, with the shipped adapters."""
    hparams = DualEditMultimodalHparams.from_hparams("testbed")
    return find_host().package.MultimodalEditor.from_hparams(hparams)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    render(draw_scene(random.Random(0)), 0).save(path)
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_an_edit_says_its_target_as_it_is_written(scene: Path, target: str) -> None:
    metrics, edited, _ = editor().edit(
        prompts=[QUESTION], targets=[target], image=[str(scene)], file_type=["image"]
    )
    assert float(metrics[0]["post"]["rewrite_acc"]) == 1
    model, processor = editor().model, editor().tok
    if not HAS_MASTER:
        model, processor = model.base, model.processor
    encoder = Encoder(Backbone.of(model), processor)
    batch = encoder.encode([Query(QUESTION, scene)])
    made = edited.generate(**batch.inputs, max_new_tokens=8, do_sample=False)
    text = encoder.tokenizer.decode(
        made[0, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert text == target


@needs_release
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("family", ["llava", "llava-onevision"])
def test_the_release_reads_the_target_that_its_text_ends_with(family: str, target: str) -> None:
    workplace = shared_workplace(family)
    model, processor = load_model(str(workplace.model), device="cpu")
    samples = LegacySamples(Encoder(Backbone.of(model), processor))
    ids = processor.tokenizer([target], add_special_tokens=False, return_tensors="pt")["input_ids"]
    given = {"text_input": [f"What? {target}"], "image": None, "labels": ids, "prompts_len": [1]}
    batch = samples.read(given)
    assert torch.equal(batch.inputs["input_ids"][batch.target], ids[0])


@needs_release
@pytest.mark.parametrize("trainer", ["MultimodalTrainer", "DualEditTrainer"])
def test_training_on_the_release_reads_targets_that_end_in_blanks(
    tmp_path: Path, trainer: str
) -> None:
    workplace = shared_workplace("llava")
    items = json.loads(workplace.records.read_text(encoding="utf-8"))
    for item, before, after in zip(items, ("", "", " ", " "), (" ", " \n", "", " "), strict=True):
        item["alt"] = before + item["alt"] + after
    records = tmp_path / "records.json"
    records.write_text(json.dumps(items), encoding="utf-8")
    changed = Workplace(
        workplace.family, workplace.model, records, workplace.pictures, workplace.adapters
    )
    made = trained(changed, tmp_path / "results", trainer, "CaptionDataset", final_eval=False)
    assert made.global_iter > 0
