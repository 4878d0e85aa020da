"""The command `train`: adapters are trained for a model and saved, or their gate is made anew."""

import argparse
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_dualedit.commands.arguments import TRAINING_HPARAMS, add_data, add_model, count
from easyedit_dualedit.errors import ArchiveError

if TYPE_CHECKING:
    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.method.gate_calibration import Calibration
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
    from easyedit_dualedit.train.config import TrainingConfig
    from easyedit_dualedit.train.processes import Processes

HELP = "train adapters for a model"
DESCRIPTION = "Train the adapters of a model on edit records and calibrate the gate."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, TRAINING_HPARAMS)
    add_data(parser)
    parser.add_argument("--steps", type=count, help="optimiser steps, instead of max_iters")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder that the adapters are written to"
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
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams

    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    # Beside the adapters, which are all that their folder is to hold.
    drawn = arguments.output.with_name(f"{arguments.output.name}-data")
    records = records_of(arguments, hparams.model_name, drawn, "train")
    PictureFiles.opened(records)
    make = remake_gate_and_save if arguments.gate_only else train_and_save
    _require_writable(arguments.output)
    # Processes of one group train into one folder; the first is the one that writes.
    is_first = os.environ.get("RANK", "0") == "0"
    with alone_in(arguments.output) if is_first else nullcontext():
        make(hparams, records, arguments.output, arguments.steps)


def train_and_save(
    hparams: "DualEditMultimodalTrainingHparams",
    records: "Sequence[Record]",
    output: Path,
    steps: int | None,
) -> None:
    """Train adapters, save them, and print what the gates do on the training records.

    Args:
        hparams: of the training.
        records: to train on.
        output: folder of the adapters; a training that was stopped continues from what is in it.
        steps: optimiser steps, instead of those of the hyperparameters.

    Raises:
        ArchiveError: if the folder cannot be written to.
    """
    import torch

    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.train.trainer import train

    _require_writable(output)
    config = _config(hparams, records, steps)
    checkpoint = output / "training.pt"
    with _model(hparams) as (model, processor, processes):
        torch.manual_seed(config.seed)
        editor = DualEditor(model, processor, hparams.dualedit_config())
        gates = train(editor, records, config, checkpoint=checkpoint)
    if not processes.is_first:
        return  # all have the same adapters, and one saves them
    editor.save(output)
    checkpoint.unlink(missing_ok=True)
    _show(gates, output)


def remake_gate_and_save(
    hparams: "DualEditMultimodalTrainingHparams",
    records: "Sequence[Record]",
    output: Path,
    steps: int | None,
) -> None:
    """Make the gate of the hyperparameters' archive anew, save it with the adapters, and print it.

    Args:
        hparams: of the training.
        records: training records.
        output: folder of the adapters with the new gate, which may be the archive itself.
        steps: of the training, which say how many records teach the gate unless `gate_records`
            does.

    Raises:
        ArchiveError: if there are no adapters, or the folder cannot be written to.
    """
    from easyedit_dualedit.plugin.archives import TrainedAdapters
    from easyedit_dualedit.train.trainer import remake_gate

    _require_writable(output)
    config = _config(hparams, records, steps)
    adapters = TrainedAdapters.read(hparams.archive)
    with _model(hparams) as (model, processor, processes):
        editor = adapters.editor(model, processor, hparams)
        gates = remake_gate(editor, records, config)
    if processes.is_first:
        editor.save(output)
        _show(gates, output)


def _config(
    hparams: "DualEditMultimodalTrainingHparams", records: "Sequence[Record]", steps: int | None
) -> "TrainingConfig":
    config = hparams.training_config()
    if steps is None and hparams.max_iters is None:
        steps = max(1, (hparams.max_epochs or 1) * (len(records) // config.batch_size))
    return config if steps is None else dataclasses.replace(config, steps=steps)


@contextmanager
def _model(
    hparams: "DualEditMultimodalTrainingHparams",
) -> "Iterator[tuple[Any, Any, Processes]]":
    """Yield the model, its processor, and this process among those that train together."""
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.train.processes import joined

    on_processor = str(hparams.device) == "cpu"
    with joined("gloo" if on_processor else "nccl") as processes:
        if processes.count > 1 and not on_processor:
            hparams.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        yield *load_model(hparams.model_name, **hparams.placement), processes


def _show(gates: "Mapping[Any, Calibration]", output: Path) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.report.table import Table, numbers

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


def _require_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ArchiveError(f"cannot write to {folder}: {existing} is no folder to write in")
