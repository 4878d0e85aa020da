"""The command `demo`: the bundled testbed model is edited through EasyEdit."""

import argparse
from pathlib import Path

from easyedit_dualedit.commands.arguments import add_run_folder, count
from easyedit_dualedit.errors import ConfigError

HELP = "edit the bundled testbed model (the default)"
DESCRIPTION = (
    "Edit the bundled testbed model with the bundled adapters, each edit made through EasyEdit and"
    " measured alone, and print one table."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument(
        "--train",
        action="store_true",
        help="train the adapters first instead of using bundled ones",
    )
    parser.add_argument(
        "--steps", type=count, help="optimiser steps with --train (default: those of the hparams)"
    )
    parser.add_argument("--count", type=count, default=300, help="edits (default: 300)")
    add_run_folder(parser, "demo")


def run(arguments: argparse.Namespace) -> None:
    """Edit the testbed model through EasyEdit and print the table of gates and presets.

    Raises:
        ConfigError: if --steps is given without --train.
    """
    from easyedit_dualedit.commands.runs import alone_in

    if arguments.steps is not None and not arguments.train:
        raise ConfigError("--steps goes with --train; the bundled adapters are trained already")
    folder: Path = arguments.output / arguments.name
    with alone_in(folder):
        _run(arguments, folder)


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    import torch

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.demo_data import (
        CARRYING,
        DemoAdapters,
        demo_hparams,
        demo_methods,
    )
    from easyedit_dualedit.commands.records import testbed_records
    from easyedit_dualedit.commands.runs import measure_and_print, settings_of
    from easyedit_dualedit.commands.trained_targets import split_of
    from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
    from easyedit_dualedit.measure.run import Run
    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.plugin.workbench import Workbench
    from easyedit_dualedit.testbed.untaught import with_untaught_targets

    # The testbed is too small to gain from a second thread, and on a busy machine threads that wait
    # for each other are twenty times slower.
    torch.set_num_threads(1)
    adapters = DemoAdapters.bundled()
    if arguments.train:
        adapters = DemoAdapters(folder / "adapters-default", folder / "adapters-published")
        _train("testbed", adapters.default, folder / "data", arguments.steps)
        _train("testbed-published", adapters.published, folder / "data", arguments.steps)
    records = testbed_records(folder / "data", "eval", arguments.count)
    workbench = Workbench(demo_hparams(adapters.default))
    methods = demo_methods(workbench, adapters)
    settings = settings_of(
        records,
        methods,
        {"default": adapters.default, "published": adapters.published},
        easyedit=workbench.host.edition,
    )
    stored = Run(folder, settings, fresh=arguments.fresh)
    encoder = DualEditor.load(workbench.model, workbench.processor, adapters.default).encoder
    split = split_of(records, archive=adapters.default)
    measure_and_print(stored, records, encoder, methods, DUALEDIT, split=split)
    console().print("\nThe same questions, with answers that no training taught:")
    untaught = with_untaught_targets(records)
    carrying = {name: methods[name] for name in CARRYING}
    settings = settings_of(
        untaught,
        carrying,
        {"default": adapters.default, "published": adapters.published},
        easyedit=workbench.host.edition,
    )
    stored = Run(folder / "untaught", settings, fresh=arguments.fresh)
    split = split_of(untaught, archive=adapters.default)
    measure_and_print(stored, untaught, encoder, carrying, DUALEDIT, split=split)


def _train(name: str, target: Path, data: Path, steps: int | None) -> None:
    from easyedit_dualedit.commands.records import testbed_records
    from easyedit_dualedit.commands.train import train_and_save
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams as Hparams
    from easyedit_dualedit.plugin.hparams_files import shipped_hparams

    hparams = Hparams.from_hparams(shipped_hparams(name, Hparams.folder))
    hparams.validation_records = 0  # the demo's adapters are those of all records
    train_and_save(hparams, testbed_records(data, "train"), target, steps)
