"""The command `train`: adapters are trained for a model and saved."""

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_dualedit.commands.arguments import TRAINING_HPARAMS, add_data, add_model, count
from easyedit_dualedit.errors import ArchiveError

if TYPE_CHECKING:
    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams

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


def run(arguments: argparse.Namespace) -> None:
    """Train the adapters of a model and save them."""
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.records import records_of
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams

    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    # Beside the adapters, which are all that their folder is to hold.
    drawn = arguments.output.with_name(f"{arguments.output.name}-data")
    records = records_of(arguments, hparams.model_name, drawn, "train")
    train_and_save(hparams, records, arguments.output, arguments.steps)


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

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.report.table import Table, numbers
    from easyedit_dualedit.train.processes import joined
    from easyedit_dualedit.train.trainer import train

    _require_writable(output)
    config = hparams.training_config()
    if steps is None and hparams.max_iters is None:
        steps = max(1, (hparams.max_epochs or 1) * (len(records) // config.batch_size))
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    on_processor = str(hparams.device) == "cpu"
    with joined("gloo" if on_processor else "nccl") as processes:
        if processes.count > 1 and not on_processor:
            hparams.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        model, processor = load_model(hparams.model_name, **hparams.placement)
        torch.manual_seed(config.seed)
        editor = DualEditor(model, processor, hparams.dualedit_config())
        checkpoint = output / "training.pt"
        gates = train(editor, records, config, checkpoint=checkpoint)
    if not processes.is_first:
        return  # all have the same adapters, and one saves them
    editor.save(output)
    checkpoint.unlink(missing_ok=True)
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
