"""Makes the gate, then trains the adapters on edit records. The base model stays frozen.

The gate comes first, since it does not depend on the adapters: what is saved while they are trained
is ready for use, and validation measures with the gate that decides in the end.
"""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from easyedit_dualedit.data.record_lengths import require_fit
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.training_targets import targets_of
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.method.config import GateKind
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_calibration import Calibration
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import input_device
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.batch_gradient import BatchGradient
from easyedit_dualedit.train.checkpoint import WATCH, Checkpoint, Stateful
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.drawn_targets import with_drawn_targets
from easyedit_dualedit.train.gate_stage import GateStage
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.pictures_ahead import PicturesAhead
from easyedit_dualedit.train.progress import TrainingProgress
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.text_only import with_text_only
from easyedit_dualedit.train.watch import Watch, Watching

CHECKPOINT_EVERY = 200
"""Steps between two checkpoints."""

CHECKPOINT_SECONDS = 30.0
"""Between two checkpoints of slow steps, too: what a killed training loses at most."""

FORGET_EVERY = 1000
"""Steps after which frozen states are computed anew, as a continued training computes them anew:
their last bits depend on the batch in which a query was first seen."""


def train(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    checkpoint: Path | None = None,
    progress: bool = True,
    watching: Watching | None = None,
    pictures: str | None = None,
) -> dict[GateKind, Calibration]:
    """Train the adapters of `editor` in place, calibrate its gate, and return how the gate does.

    With validation records the adapters are in the end those that did best on them.

    Inside a group of torch.distributed, each process takes its share of every batch, and all end
    with the same adapters: those of one process with the same batches, but for rounding. Only the
    first writes checkpoints; all must see the folder that they are in.

    As many records of a batch run at once as memory has room for, half as many where it ends all
    the same; the step is that of the whole batch, but for rounding.

    Args:
        editor: its adapters are trained; its model is only read.
        records: training records, at least one batch of them.
        config: steps, rates, weights.
        checkpoint: file to continue from if it exists, written every `CHECKPOINT_EVERY` steps or
            `CHECKPOINT_SECONDS`, and after the last; the caller removes it once the adapters are
            saved. On one machine a continued training gives the bits of an unbroken one.
        progress: whether to show how far it is.
        watching: what is measured and written meanwhile; None means nothing.
        pictures: tells the files of the records' pictures from others, so that a checkpoint is
            continued with the same; None tells none.

    Raises:
        DataError: if there are fewer records than a batch takes, or a text is longer than the model
            can read.
        BackboneError: if no gradient passes through the model's weights.
        ArchiveError: if the checkpoint is damaged or of another run.
        ConfigError: if the losses are no numbers any longer.
    """
    require_a_batch(records, config)
    processes = Processes.current()
    if config.batch_size < processes.count:
        raise DataError(
            f"a batch of {config.batch_size} has no record for each of {processes.count} processes;"
            " raise batch_size or start fewer"
        )
    require_fit(records, editor.encoder)
    editor.backbone.require_gradients()
    torch.manual_seed(config.seed)
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=config.learning_rate)
    schedule = schedule_of(optimiser, config)
    records = with_drawn_targets(
        records, config.augment_targets, editor.encoder.tokenizer, config.seed
    )
    # Without steps of its own, that of an archive has been taught already.
    keeps = not config.gate_steps and editor.gate.projection.is_trained
    gate = GateStage(editor, records, config, keeps=keeps)
    # Not before: a gate that they taught knew the same thing drawn otherwise far less well.
    records = with_text_only(records, config.text_only, config.seed)
    known = editor.training_targets or ()

    def seen_after(steps: int) -> tuple[str, ...]:
        """Return the targets that so many steps train on, and those of an archive before them."""
        drawn = records_of_steps(records, config, steps)
        return tuple(sorted({*known, *targets_of(drawn)}))

    watch = Watch(watching or Watching(), editor, config, seen_after)
    further: dict[str, Stateful] = {"gate": gate, WATCH: watch}
    state = Checkpoint(checkpoint, editor, optimiser, schedule, records, config, further, pictures)
    first = state.restore()
    processes.agree(editor.adapters.parameters())
    progress = progress and processes.is_first
    editor.training_targets = seen_after(config.steps)  # for validation, unless it ends earlier
    training_step = TrainingStep.within(editor, config)
    gradient = BatchGradient(editor, training_step, config)

    def batch_of(place: int) -> Sequence[Record]:
        """Return the records of this process in a batch."""
        indices = batch_indices(place, len(records), config)
        return processes.share([records[i] for i in indices])

    each = config.accumulate
    ahead = PicturesAhead(
        batch_of,
        range(first * each, config.steps * each),
        editor.encoder.opened,
        config.picture_workers,
    )

    def batches(step: int) -> Iterator[Sequence[Record]]:
        """Yield the records of this process in each batch of a step."""
        for part in range(each):
            yield ahead.batch(step * each + part)

    with (
        contextlib.closing(ahead),
        undisturbed(editor.backbone.model),
        _frozen(editor.backbone.model),
    ):
        is_remade = gate.run(progress=progress)
        if is_remade:
            watch.forget_best()
            if processes.is_first:
                state.store(first)
        places = range((first - first % FORGET_EVERY) * each, first * each)
        for place in tqdm(places, "reading again", disable=not progress, leave=False):
            if not training_step.read_again(batch_of(place), config):
                break
        bar = TrainingProgress(
            first,
            config.steps,
            config.batch_size * config.accumulate,
            device=input_device(editor.backbone.model),
            shown=progress,
        )
        is_over = watch.is_over(first)
        # Whatever is left to do, what comes out is measured with the gate that it has.
        begins = is_remade or not is_over
        if begins and watch.begin(first, records, bar) and processes.is_first:
            state.store(first)
        stored = time.monotonic()
        step = first
        while not watch.is_over(step):
            optimiser.zero_grad(set_to_none=True)
            if step % FORGET_EVERY == 0:
                training_step.forget()
            losses = StepLosses.mean([gradient.add(batch) for batch in batches(step)])
            processes.add_gradients(editor.adapters.parameters())
            norm = nn.utils.clip_grad_norm_(
                editor.adapters.parameters(), config.gradient_clip or math.inf
            )
            rate = float(schedule.get_last_lr()[0])
            optimiser.step()
            schedule.step()
            step += 1
            bar.step(losses.by_metric, gradient.at_once)
            _require_numbers(losses.by_metric.values(), f"losses of step {step}", config)
            measured = watch.after(step, losses, rate, float(norm), bar)
            late = time.monotonic() - stored > CHECKPOINT_SECONDS
            due = measured or late or step == config.steps or step % CHECKPOINT_EVERY == 0
            if processes.is_first and due:
                state.store(step)
                stored = time.monotonic()
        watch.finish(step, bar)
        bar.close()
        extremes = [each.detach().abs().amax() for each in editor.adapters.parameters()]
        _require_numbers(torch.stack(extremes).tolist(), "trained weights", config)
    return gate.calibrations


def remake_gate(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    progress: bool = True,
) -> dict[GateKind, Calibration]:
    """Make the gate of trained adapters anew, and return how it does; the adapters stay.

    With the records and the configuration of their training it is the gate that they had then.

    Args:
        editor: its gate is trained in place.
        records: training records.
        config: of the training; steps and batch size only say how many records teach the gate.
        progress: whether to show bars.

    Raises:
        CalibrationError: if there are no records, or too few to hold any out.
    """
    tokenizer = editor.encoder.tokenizer
    records = with_drawn_targets(records, config.augment_targets, tokenizer, config.seed)
    stage = GateStage(editor, records, config)
    stage.run(progress=progress and Processes.current().is_first)
    return stage.calibrations


def require_a_batch(records: Sequence[Record], config: TrainingConfig) -> None:
    """Check that there are as many records as a batch takes.

    Raises:
        DataError: if there are fewer.
    """
    if len(records) < config.batch_size:
        raise DataError(
            f"{len(records)} records are fewer than a batch of {config.batch_size}; give more"
            " data, or lower batch_size in the hparams"
        )


def batch_indices(step: int, count: int, config: TrainingConfig) -> list[int]:
    """Return which of `count` records batch `step` holds; without accumulation, a step's own.

    A function of its arguments alone, so that a continued run sees what an unbroken one sees.
    Every epoch is another order of all records; a last part smaller than a batch is left out.
    """
    batches = count // config.batch_size
    epoch, place = divmod(step, batches)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(count, generator=generator)
    return order[place * config.batch_size : (place + 1) * config.batch_size].tolist()


def records_of_steps(
    records: Sequence[Record], config: TrainingConfig, steps: int | None = None
) -> Sequence[Record]:
    """Return the records that steps draw, in their order; one epoch may leave out a last part.

    Args:
        records: of the training.
        config: of the training.
        steps: the first of it; None means all.
    """
    drawn: set[int] = set()
    for step in range((config.steps if steps is None else steps) * config.accumulate):
        drawn.update(batch_indices(step, len(records), config))
        if len(drawn) == len(records):
            return records
    return [records[place] for place in sorted(drawn)]


def targets_taught(
    records: Sequence[Record], config: TrainingConfig, tokenizer: Any
) -> tuple[str, ...]:
    """Return the targets that `train` trains on, those that it draws among them."""
    drawn = with_drawn_targets(records, config.augment_targets, tokenizer, config.seed)
    drawn = with_text_only(drawn, config.text_only, config.seed)
    return targets_of(records_of_steps(drawn, config))


def _require_numbers(values: Iterable[float], what: str, config: TrainingConfig) -> None:
    if not all(map(math.isfinite, values)):
        raise ConfigError(
            f"the {what} are no numbers any longer: lower the learning rate (lr, here"
            f" {config.learning_rate}) or set gradient_clip, and start anew"
        )


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    modes = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in modes:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in modes:
            parameter.requires_grad_(required)


def schedule_of(
    optimiser: torch.optim.Optimizer, config: TrainingConfig
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return what sets the learning rate of each step, as a configuration says."""
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=config.learning_rate,
            total_steps=config.steps + 1,
            pct_start=0.1,
            # Not every optimiser that EasyEdit may be told to use has one.
            cycle_momentum=not {"betas", "momentum"}.isdisjoint(optimiser.defaults),
        )
    return torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0, total_iters=0)
