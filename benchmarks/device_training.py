"""Training tried on a device: the ways of a step, and a whole training with its gate."""

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.device_subject import DeviceSubject
from benchmarks.trials import Trial, require
from easyedit_dualedit.data.scope import SCOPE
from easyedit_dualedit.experiments.finetuning_rows import (
    FineTuning,
    FineTuningConfig,
    last_layer_parameters,
    vision_parameters,
)
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.scope_states import collect
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import train

STEPS = 20

_PLAIN = TrainingConfig(steps=2, gate_steps=0)

_WAYS = {
    "checkpoint_activations": replace(_PLAIN, checkpoint_activations=True),
    "accumulate 2": replace(_PLAIN, accumulate=2, batch_size=2),
    "autocast bfloat16": replace(_PLAIN, autocast="bfloat16"),
    "no caches": replace(_PLAIN, feature_cache_bytes=0, state_cache_bytes=0),
}


def training(subject: DeviceSubject) -> dict[str, Trial]:
    """Return the trials of training by name."""
    found: dict[str, Trial] = {
        f"train {STEPS} steps, calibrate and train the gate": partial(_trained, subject),
        "shared steps give the losses of whole forwards": partial(_shared, subject),
    }
    for name, config in _WAYS.items():
        found[f"train: {name}"] = partial(_trained_as_plain, subject, config)
    found["train: frozen states in a folder"] = partial(_folder, subject)
    found["a stopped training goes on, with another gate stage"] = partial(_continued, subject)
    for kind in ("float32", "bfloat16", "float16"):
        found[f"fine-tuning in {kind}"] = partial(_finetuned, subject, getattr(torch, kind))
    return found


def _fresh(subject: DeviceSubject) -> DualEditor:
    encoder = subject.editor.encoder
    config = replace(subject.editor.config, gate=GateConfig("learned"))
    torch.manual_seed(0)
    return DualEditor(subject.model, encoder.processor, config)


def _trained(subject: DeviceSubject) -> str:
    editor, config = _fresh(subject), TrainingConfig(steps=STEPS, gate_steps=STEPS)
    before = _digest(subject)
    start = _loss(subject, editor, config)
    found = train(editor, subject.records, config, progress=False)
    end = _loss(subject, editor, config)
    require(end < start, f"the loss goes from {start:.2f} to {end:.2f}")
    require(torch.equal(before, _digest(subject)), "the model's own weights changed")
    require(editor.gate.kind == "learned", "the gate is not trained")
    states = collect(editor, subject.records, progress=False)
    require(set(states.gate) == set(SCOPE), "not every kind of query is collected")
    request = subject.records[0].request
    with torch.no_grad():
        edited = editor.edited(editor.read([request]))
    batch = subject.encode([request])
    routing = edited.route(layout=batch.layout, **batch.inputs)
    require(bool(routing.is_open[0]), "the learned gate is closed for the edit's own question")
    thresholds = ", ".join(f"{kind} {each.threshold:.3f}" for kind, each in found.items())
    return f"loss {start:.2f} to {end:.2f}; {thresholds}"


def _loss(subject: DeviceSubject, editor: DualEditor, config: TrainingConfig) -> float:
    return float(plain_losses(editor, subject.records[:4], config).total.detach())


def _shared(subject: DeviceSubject) -> str:
    editor, records = subject.editor, subject.records[:2]
    config, steps = TrainingConfig(batch_size=2), TrainingStep(editor)
    found, again = (steps.losses(records, config) for _ in range(2))
    expected = plain_losses(editor, records, config)
    require(not steps.is_plain, "steps run whole forwards")
    worst = 0.0
    for losses in (found, again):
        for metric, value in expected.by_metric.items():
            apart = abs(losses.by_metric[metric] - value) / max(1.0, abs(value))
            require(apart <= subject.rounding, f"{metric}: {losses.by_metric[metric]}, not {value}")
            worst = max(worst, apart)
    shortcuts = [name for name in ("shares", "trims") if not getattr(steps.frozen, name)]
    return f"at most {worst:.2%} apart; shortcuts left out: {', '.join(shortcuts) or 'none'}"


def _trained_as_plain(subject: DeviceSubject, config: TrainingConfig) -> str:
    """Train in some way on four records, and compare with plain steps."""
    editor = _fresh(subject)
    train(editor, subject.records[:4], config, progress=False)
    expected = _fresh(subject)
    train(expected, subject.records[:4], _PLAIN, progress=False)
    apart = [
        float((one - two).detach().abs().amax())
        for one, two in zip(
            editor.adapters.parameters(), expected.adapters.parameters(), strict=True
        )
    ]
    require(max(apart) <= _reach(config), f"weights are {max(apart):.1e} from those of plain steps")
    require(all(map(math.isfinite, apart)), "weights are not finite")
    return f"weights at most {max(apart):.1e} from those of plain steps"


def _reach(config: TrainingConfig) -> float:
    # A step of Adam moves a weight by the learning rate at most, and rounding may turn its sign.
    return 2.5 * config.steps * config.learning_rate


def _folder(subject: DeviceSubject) -> str:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            editor = _fresh(subject)
            config = TrainingConfig(steps=2, gate_steps=0, state_cache_folder=folder)
            train(editor, subject.records[:4], config, progress=False)
            found.append(
                torch.cat([value.detach().flatten() for value in editor.adapters.parameters()])
            )
        sizes = [file.stat().st_size for file in Path(folder).rglob("*.safetensors")]
    require(bool(sizes), "nothing is kept")
    apart = float((found[0] - found[1]).abs().amax())
    # A GPU adds up gradients in another order each time.
    require(apart <= _reach(_PLAIN), f"a run with kept states differs by {apart:.1e}")
    return f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB; weights {apart:.1e} apart"


def _continued(subject: DeviceSubject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "training.pt"
        config = TrainingConfig(steps=2, gate_steps=STEPS)
        train(_fresh(subject), subject.records[:4], config, checkpoint=checkpoint, progress=False)
        editor = _fresh(subject)
        other = replace(config, gate_steps=0, feature_cache_bytes=0)
        train(editor, subject.records[:4], other, checkpoint=checkpoint, progress=False)
    weights = [value.detach().abs().sum() for value in editor.adapters.parameters()]
    require(bool(torch.stack(weights).isfinite().all()), "weights are not finite")


def _finetuned(subject: DeviceSubject, dtype: torch.dtype) -> str:
    model, usual = subject.model, subject.model.dtype
    processor, backbone = subject.editor.encoder.processor, subject.editor.backbone
    model.to(dtype)
    stiff = subject.shapes.hidden < 1000  # as tiny random models are
    config = FineTuningConfig(100, 1e-2) if stiff else FineTuningConfig()
    records = subject.records[: 1 if stiff else 8]
    try:
        method = FineTuning(model, processor, last_layer_parameters(backbone), config)
        exact = 0
        for record in records:
            with method.edit(record):
                exact += _is_said(subject, record.request)
        one = replace(config, steps=3)
        method = FineTuning(model, processor, vision_parameters(backbone), one)
        with method.edit(subject.records[0]):
            batch = subject.encode([subject.records[0].request])
            require(bool(subject.logits(model, batch).isfinite().all()), "vision side: no numbers")
    finally:
        model.to(usual)
    said = f"{exact} of {len(records)} edits of the last layer are said"
    require(exact == len(records), said)
    return f"{said}; the vision side gives numbers"


def _is_said(subject: DeviceSubject, request: Query) -> bool:
    batch = subject.encode([request], with_target=False)
    wanted = subject.editor.encoder.target_ids(request.target or "")
    said = subject.generate(subject.model, batch, len(wanted), do_sample=False)
    return said[0].tolist() == wanted


def _digest(subject: DeviceSubject) -> Tensor:
    """Return numbers that tell whether any weight of the model changed."""
    with torch.no_grad():
        return torch.stack([value.double().sum() for value in subject.model.parameters()])
