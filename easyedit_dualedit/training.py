"""Trains the adapters on edit records, then calibrates the gate. The base model stays frozen."""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from easyedit_dualedit.batch import IGNORED, Batch
from easyedit_dualedit.checkpoint import Checkpoint
from easyedit_dualedit.config import GateKind, TrainingConfig
from easyedit_dualedit.editor import DualEditor
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.gate import Calibration
from easyedit_dualedit.gate_training import calibrate, train_gate
from easyedit_dualedit.losses import answer_cross_entropy, answer_divergence
from easyedit_dualedit.memory import EditSignal
from easyedit_dualedit.records import METRICS, Record, queries_of
from easyedit_dualedit.scope import IN_SCOPE

CHECKPOINT_EVERY = 200
"""Steps between two checkpoints."""


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step by metric, unweighted, in nats; and their weighted sum."""

    total: Tensor
    by_metric: dict[str, float]


def step_losses(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig
) -> StepLosses:
    """Return the losses of one batch of edits, with the gate held open.

    Each edit is tried on its own queries only. Cross-entropy on the queries in scope, divergence
    from the unedited model on those out of scope; a metric of weight 0 is not computed.
    """
    signals = editor.read(queries_of(records, "reliability"))
    weights = {metric: getattr(config, f"{metric}_weight") for metric in METRICS}
    scope = [metric for metric in IN_SCOPE if weights[metric]]
    locality = [metric for metric in METRICS if metric not in IN_SCOPE and weights[metric]]
    losses: dict[str, Tensor] = {}
    if scope:
        batch = _encode(editor, records, scope, end_of_answer=config.end_of_answer)
        logits = _edited_logits(editor, signals, batch, len(scope))
        parts = zip(scope, logits.chunk(len(scope)), batch.labels.chunk(len(scope)), strict=True)
        for metric, part, labels in parts:
            losses[metric] = answer_cross_entropy(part, labels)
    if locality:
        batch = _encode(editor, records, locality, end_of_answer=False)
        with torch.no_grad():
            plain = _logits(editor.backbone.model, batch)
        edited = _edited_logits(editor, signals, batch, len(locality))
        count = len(locality)
        for metric, before, after, labels in zip(
            locality,
            plain.chunk(count),
            edited.chunk(count),
            batch.labels.chunk(count),
            strict=True,
        ):
            losses[metric] = answer_divergence(before, after, labels)
    total = torch.stack([weights[metric] * loss for metric, loss in losses.items()]).sum()
    return StepLosses(total, {metric: float(loss.detach()) for metric, loss in losses.items()})


def train(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> dict[GateKind, Calibration]:
    """Train the adapters of `editor` in place, calibrate its gate, and return how the gate does.

    Args:
        editor: its adapters are trained; its model is only read.
        records: training records, at least one batch of them.
        config: steps, rates, weights.
        checkpoint: file to continue from if it exists, written every `CHECKPOINT_EVERY` steps and
            after the last; the caller removes it once the adapters are saved.
        progress: whether to show a bar.

    Raises:
        DataError: if there are fewer records than a batch takes.
        BackboneError: if no gradient passes through the model's weights.
        ArchiveError: if the checkpoint is damaged or of another run.
    """
    if len(records) < config.batch_size:
        raise DataError(
            f"{len(records)} records are fewer than a batch of {config.batch_size}; give more"
            " data or lower batch_size"
        )
    editor.backbone.require_gradients()
    torch.manual_seed(config.seed)
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=config.learning_rate)
    schedule = _schedule(optimiser, config)
    state = Checkpoint(checkpoint, editor, optimiser, schedule, records, config)
    first = state.restore()
    with _frozen(editor.backbone.model):
        bar = tqdm(
            range(first, config.steps),
            initial=first,
            total=config.steps,
            desc="training",
            unit="step",
            disable=not progress,
        )
        for step in bar:
            chosen = [records[i] for i in batch_indices(step, len(records), config)]
            losses = step_losses(editor, chosen, config)
            optimiser.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            if config.gradient_clip:
                nn.utils.clip_grad_norm_(editor.adapters.parameters(), config.gradient_clip)
            optimiser.step()
            schedule.step()
            bar.set_postfix({metric: f"{loss:.3f}" for metric, loss in losses.by_metric.items()})
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == config.steps:
                state.store(step + 1)
        found = calibrate(editor, records, config.batch_size)
        if config.gate_steps:
            found["learned"] = train_gate(editor, records, config, progress=progress)
    return found


def batch_indices(step: int, count: int, config: TrainingConfig) -> list[int]:
    """Return which of `count` records step `step` trains on.

    A function of its arguments alone, so that a continued run sees what an unbroken one sees.
    Every epoch is another order of all records; a last part smaller than a batch is left out.
    """
    batches = count // config.batch_size
    epoch, place = divmod(step, batches)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return order[place * config.batch_size : (place + 1) * config.batch_size].tolist()


def _encode(
    editor: DualEditor, records: Sequence[Record], metrics: Sequence[str], *, end_of_answer: bool
) -> Batch:
    queries = [query for metric in metrics for query in queries_of(records, metric)]
    return editor.encoder.encode(queries, end_of_answer=end_of_answer)


def _edited_logits(
    editor: DualEditor, signals: Sequence[EditSignal], batch: Batch, repeats: int
) -> Tensor:
    assignment = torch.arange(len(signals)).repeat(repeats)
    edited = editor.edited(signals, assignment=assignment, gate=editor.open_gate())
    return _logits(edited, batch, layout=batch.layout)


def _logits(model: Any, batch: Batch, **extra: Any) -> Tensor:
    # Rows are padded on the left, so the answers of all rows stand at the end.
    answer = batch.labels != IGNORED
    width = answer.shape[1] - int(answer.any(0).to(torch.uint8).argmax())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = width + 1
    logits: Tensor = model(**batch.inputs, use_cache=False, **extra).logits
    return logits[:, -width - 1 :]


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    modes = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    model.eval()
    for parameter, _ in modes:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in modes:
            parameter.requires_grad_(required)
        model.train(was_training)


def _schedule(
    optimiser: torch.optim.Optimizer, config: TrainingConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=config.learning_rate,
            total_steps=config.steps + 1,
            pct_start=0.1,
        )
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0, total_iters=0)
