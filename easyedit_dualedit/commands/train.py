"""The command `train`: adapters are trained for a model and saved, or their gate is made anew."""

import argparse
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_dualedit.commands.arguments import (
    TRAINING_HPARAMS,
    add_data,
    add_memory,
    add_model,
    count,
    given_path,
)
from easyedit_dualedit.commands.launchers import launched, rank, with_precision
from easyedit_dualedit.commands.training_folder import (
    CHECKPOINT_FILE,
    CURVES_FOLDER,
    forget,
    require_elsewhere,
    require_unfinished,
)
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.files import require_writable

if TYPE_CHECKING:
    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.method.gate_calibration import Calibration
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
    from easyedit_dualedit.processes import Processes
    from easyedit_dualedit.train.config import TrainingConfig
    from easyedit_dualedit.train.curves import Line, Listener

logger = logging.getLogger(__name__)

HELP = "train adapters for a model"

DESCRIPTION = "Train the adapters of a model on edit records and calibrate the gate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, TRAINING_HPARAMS)
    add_data(parser)
    parser.add_argument("--steps", type=count, help="optimiser steps, instead of max_iters")
    parser.add_argument(
        "--output", type=given_path, required=True, help="folder that the adapters are written to"
    )
    parser.add_argument(
        "--validation",
        type=records_held_out,
        metavar="RECORDS",
        help="records that are held out, and measured during the training; 0 for none (default:"
        " validation_records of the hparams, or 200 and at most a tenth of all)",
    )
    parser.add_argument(
        "--log",
        choices=["tensorboard"],
        help="also write the curves for TensorBoard, into OUTPUT/curves/tensorboard",
    )
    add_memory(parser)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start anew, where --output holds adapters or a training that was stopped",
    )
    parser.add_argument(
        "--gate-only",
        action="store_true",
        help="train no adapters, but make the gate of those in --archive anew",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train the adapters of a model and save them."""
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.records import records_of
    from easyedit_dualedit.commands.runs import alone_in
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.plugin.archives import TrainedAdapters
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams

    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    if hparams.opt != "Adam":
        logger.warning("opt = %r is for EasyEdit's trainers; this command takes Adam", hparams.opt)
    # What cannot end well is told before records are drawn.
    require_writable(arguments.output)
    if arguments.gate_only and arguments.log:
        raise ConfigError("--log goes with a training, and --gate-only has none; leave one out")
    if arguments.gate_only and arguments.fresh:
        raise ConfigError("--fresh goes with a training, and --gate-only has none; leave one out")
    if arguments.gate_only or hparams.archive is not None:
        TrainedAdapters.read(hparams.archive)
    if not arguments.gate_only:
        require_elsewhere(hparams.archive, arguments.output)
    if not (arguments.gate_only or arguments.fresh):
        require_unfinished(arguments.output, hparams.archive)
    if arguments.validation is not None:
        hparams.validation_records = arguments.validation
    # Beside the adapters, which are all that their folder is to hold.
    drawn = arguments.output.with_name(f"{arguments.output.name}-data")
    records = records_of(arguments, hparams.model_name, drawn, "train")
    pictures = PictureFiles.opened(records, nearest=False)
    # Processes of one group train into one folder; the first is the one that writes.
    is_first = rank() == 0
    with alone_in(arguments.output) if is_first else nullcontext():
        if arguments.gate_only:
            remake_gate_and_save(hparams, records, arguments.output, arguments.steps)
            return
        if arguments.fresh and is_first:
            forget(arguments.output)
        listeners = listeners_of(arguments.output / CURVES_FOLDER, arguments.log)
        train_and_save(
            hparams,
            records,
            arguments.output,
            arguments.steps,
            listeners=listeners if is_first else (),
            pictures=pictures.digest_of(records),
            anew=arguments.fresh,
        )


def train_and_save(
    hparams: "DualEditMultimodalTrainingHparams",
    records: "Sequence[Record]",
    output: Path,
    steps: int | None,
    *,
    listeners: "Sequence[Listener]" = (),
    pictures: str | None = None,
    anew: bool = False,
) -> None:
    """Train adapters, save them, and print what the gates do on the training records.

    Args:
        hparams: of the training; they say how many of the records validate. Adapters that they have
            as `archive` are trained further.
        records: to train on and to validate on.
        output: folder of the adapters; a training that was stopped continues from what is in it.
            Of a training that validates, the states with the best measures and of the last one lie
            in folders within it, and the best are the folder's own.
        steps: optimiser steps, instead of those of the hyperparameters.
        listeners: are told each line of the curves.
        pictures: tells the files of the records' pictures from others.
        anew: whether nothing is continued. Another process may be removing what there is.

    Raises:
        ArchiveError: if the folder cannot be written to, or the archive is of another model.
        DataError: if too many records are to validate, or too few are left to train on.
    """
    import torch

    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.plugin.archives import TrainedAdapters
    from easyedit_dualedit.train.checkpoint import began_without_validation
    from easyedit_dualedit.train.curves import Curves
    from easyedit_dualedit.train.recipe import keep_recipe
    from easyedit_dualedit.train.trainer import require_a_batch, train
    from easyedit_dualedit.train.validation_split import validation_count, validation_split
    from easyedit_dualedit.train.watch import Watching

    require_writable(output)
    adapters = None if hparams.archive is None else TrainedAdapters.read(hparams.archive)
    checkpoint = output / CHECKPOINT_FILE
    count = validation_count(hparams.validation_records, len(records))
    if hparams.validation_records is None and not anew and began_without_validation(checkpoint):
        count = 0
    split = validation_split(records, count)
    config = _config(hparams, split.training, steps)
    require_a_batch(split.training, config)
    watching = Watching(
        split.validation,
        every=hparams.val_interval,
        patience=hparams.early_stop_patience,
        folder=output,
        curves=Curves(output / CURVES_FOLDER, listeners),
        curves_every=hparams.log_interval,
    )
    with _model(hparams) as (model, processor, processes):
        torch.manual_seed(config.seed)
        if adapters is None:
            editor = DualEditor(model, processor, hparams.dualedit_config())
        else:
            editor = adapters.editor(model, processor, hparams)
        gates = train(
            editor,
            split.training,
            config,
            checkpoint=checkpoint,
            watching=watching,
            pictures=pictures,
        )
    if not processes.is_first:
        return  # all have the same adapters, and one saves them
    editor.save(output)
    keep_recipe(
        output / CURVES_FOLDER, hparams.model_name, config, split.training, len(split.validation)
    )
    checkpoint.unlink(missing_ok=True)
    _show(gates, output)


def listeners_of(folder: Path, log: str | None) -> "list[Listener]":
    """Return what draws the curves of a training at each validation and, if asked to, logs them.

    Raises:
        ConfigError: if what logs them is not installed.
    """
    from easyedit_dualedit.report.tensorboard import TensorBoard
    from easyedit_dualedit.report.training_curves import draw_curves

    def draw(line: "Line") -> None:
        if line["part"] == "validation":
            draw_curves(folder)

    return [draw, *([TensorBoard(folder / "tensorboard")] if log == "tensorboard" else [])]


def remake_gate_and_save(
    hparams: "DualEditMultimodalTrainingHparams",
    records: "Sequence[Record]",
    output: Path,
    steps: int | None,
) -> None:
    """Make the gate of the hyperparameters' archive anew, save it with the adapters, and print it.

    Args:
        hparams: of the training; they say how many of the records validate, which teach nothing.
        records: of the training.
        output: folder of the adapters with the new gate, which may be the archive itself.
        steps: of the training, which say how many records teach the gate unless `gate_records`
            does.

    Raises:
        ArchiveError: if there are no adapters, or the folder cannot be written to.
        DataError: if too many records are to validate.
    """
    from easyedit_dualedit.plugin.archives import TrainedAdapters
    from easyedit_dualedit.train.trainer import remake_gate
    from easyedit_dualedit.train.validation_split import validation_count, validation_split

    require_writable(output)
    count = validation_count(hparams.validation_records, len(records))
    taught = validation_split(records, count).training
    config = _config(hparams, taught, steps)
    adapters = TrainedAdapters.read(hparams.archive)
    with _model(hparams) as (model, processor, processes):
        editor = adapters.editor(model, processor, hparams)
        gates = remake_gate(editor, taught, config)
    if processes.is_first:
        editor.save(output)
        _show(gates, output)


def records_held_out(text: str) -> int:
    """Return a whole number, 0 or above.

    Raises:
        ArgumentTypeError: if the text is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def _config(
    hparams: "DualEditMultimodalTrainingHparams", records: "Sequence[Record]", steps: int | None
) -> "TrainingConfig":
    config = with_precision(hparams.training_config())
    if steps is None and (hparams.max_iters is None or hparams.max_epochs is not None):
        batches = (hparams.max_epochs or 1) * (len(records) // config.batch_size)
        epochs = max(1, batches // config.accumulate)
        # Of both, as in EasyEdit, the one that ends first.
        steps = epochs if hparams.max_iters is None else min(epochs, config.steps)
    return config if steps is None else dataclasses.replace(config, steps=steps)


@contextmanager
def _model(
    hparams: "DualEditMultimodalTrainingHparams",
) -> "Iterator[tuple[Any, Any, Processes]]":
    """Yield the model, its processor, and this process among those that train together."""
    from easyedit_dualedit.model.loading import load_model

    with launched(hparams) as processes:
        yield *load_model(hparams.model_name, **hparams.placement), processes


def _show(gates: "Mapping[Any, Calibration]", output: Path) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.report.table import Table, numbers

    if not gates:
        console().print(f"adapters saved in {output}; their gate stays")
        return
    rows = [
        [
            kind,
            f"{gate.threshold:.4f}",
            f"{gate.true_open_rate:.1%}",
            f"{gate.false_open_rate:.1%}",
        ]
        for kind, gate in gates.items()
    ]
    columns = numbers("gate", "threshold", "opens in scope", "opens out of scope")
    title = f"adapters saved in {output}; gate on training records"
    console().print(Table(columns, rows, title).for_terminal())
