"""Training on a device: the ways of a step, the gate, a whole training, fine-tuning rows."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import fast
from tiny_devices import Subject, is_there

from easyedit_dualedit.data.scope import SCOPE
from easyedit_dualedit.experiments.finetuning_rows import (
    FineTuning,
    FineTuningConfig,
    last_layer_parameters,
    vision_parameters,
)
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_trainer import calibrate, train_gate
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.scope_states import collect
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import train

# Not autocast: of a device that is written in Python it cannot be turned on.
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "activations again, no caches": {
        "checkpoint_activations": True,
        "feature_cache_bytes": 0,
        "state_cache_bytes": 0,
    },
}


def require_gradients(editor: DualEditor, losses: StepLosses) -> None:
    """Fail unless losses are numbers, and gradients of theirs lie on the device."""
    assert all(map(math.isfinite, losses.by_metric.values()))
    editor.adapters.zero_grad(set_to_none=True)
    losses.total.backward()
    gradients = [each.grad for each in editor.adapters.parameters() if each.grad is not None]
    assert gradients
    assert all(is_there(each) and bool(each.isfinite().all()) for each in gradients)
    editor.adapters.zero_grad(set_to_none=True)


def test_a_plain_step(subject: Subject):
    config = fast(steps=1)
    losses = plain_losses(subject.editor, subject.records[:2], config)
    require_gradients(subject.editor, losses)


@pytest.mark.parametrize("way", WAYS)
def test_a_shared_step_and_one_that_reads_what_it_kept(subject: Subject, way: str):
    config = fast(steps=1, **WAYS[way])
    step = TrainingStep.within(subject.editor, config)
    for _ in range(1 if WAYS[way] else 2):  # the other way keeps nothing
        require_gradients(subject.editor, step.losses(subject.records[:2], config))
    assert not step.is_plain


# What is kept are the states and layouts that the way before keeps in memory, for all families.
def test_frozen_states_are_kept_in_a_folder_and_read_from_it(llava: Subject, tmp_path: Path):
    config = fast(steps=1, state_cache_folder=str(tmp_path))
    for _ in range(2):  # the second begins with what is on disk
        step = TrainingStep.within(llava.editor, config)
        require_gradients(llava.editor, step.losses(llava.records[:2], config))
    assert any(tmp_path.rglob("*.safetensors"))


def test_the_gate_is_calibrated_and_trained(subject: Subject):
    editor = subject.fresh()
    records = subject.records[:4]
    found = calibrate(editor, records)
    assert set(found) == {"cosine", "centred", "last-token"}
    states = collect(editor, records, progress=False)
    for part in (states.gate, states.vision, states.counts):
        assert set(part) == set(SCOPE)
        assert all(map(is_there, part.values()))
    assert is_there(states.partners)
    # Rows come from the CPU, as a batch's are drawn there, and from the device.
    for rows in (torch.tensor([2, 0]), torch.tensor([2, 0], device=states.partners.device)):
        assert is_there(states.select(rows).partners)
    train_gate(editor, records, TrainingConfig(gate_steps=2), progress=False)
    assert all(map(is_there, editor.gate.state_dict().values()))


def test_a_training_ends_with_adapters_and_gate_on_the_device(subject: Subject, tmp_path: Path):
    config = fast(steps=1, batch_size=2, accumulate=2, gate_steps=2)
    editor, checkpoint = subject.fresh(), tmp_path / "training.pt"
    found = train(editor, subject.records[:4], config, checkpoint=checkpoint, progress=False)
    assert "learned" in found
    assert all(map(is_there, editor.state_dict().values()))
    assert checkpoint.is_file()


# What a checkpoint holds is the same for all families: adapters, optimiser, schedule.
def test_a_stopped_training_goes_on(llava: Subject, tmp_path: Path):
    checkpoint = tmp_path / "training.pt"
    config = fast(steps=2, batch_size=2, gate_steps=0, schedule="one-cycle")
    first, again = llava.fresh(), llava.fresh()
    for editor in (first, again):
        train(editor, llava.records, config, checkpoint=checkpoint, progress=False)
    for one, other in zip(first.adapters.parameters(), again.adapters.parameters(), strict=True):
        assert is_there(one)
        assert is_there(other)
        assert torch.equal(one, other)


@pytest.mark.parametrize("parameters", [last_layer_parameters, vision_parameters])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fine_tuning_changes_the_model_and_puts_it_back(
    subject: Subject, parameters: Any, dtype: torch.dtype
):
    model, editor = subject.model, subject.editor
    batch = subject.encode()
    before = model(**batch.inputs).logits
    held = [each.detach().clone() for each in (*model.parameters(), *model.buffers())]
    model.to(dtype)
    chosen = parameters(editor.backbone)
    kept = {name: value.detach().clone() for name, value in chosen.items()}
    try:
        config = FineTuningConfig(steps=1)
        tuning = FineTuning(model, subject.tiny.processor, chosen, config)
        with tuning.edit(subject.records[0]):
            assert any(not torch.equal(chosen[name], value) for name, value in kept.items())
        assert all(torch.equal(chosen[name], value) for name, value in kept.items())
    finally:
        model.to(torch.float32)
        # Rounded as they are now, they would be another model's for the tests that follow.
        with torch.no_grad():
            for each, value in zip((*model.parameters(), *model.buffers()), held, strict=True):
                each.copy_(value)
    assert is_there(before)
