"""The command `locate`: noise at each layer tells which layers to edit."""

import argparse
import dataclasses
from pathlib import Path

from easyedit_dualedit.commands.arguments import TRAINING_HPARAMS, add_run
from easyedit_dualedit.errors import ConfigError

HELP = "find the layers to edit"
DESCRIPTION = (
    "Add noise to the states of image tokens, of prompt text and of both at every decoder layer,"
    " measure how the unedited model's answers change, and propose text_layer and vision_layer."
)

_OWN_RECORDS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_run(parser, "locate", TRAINING_HPARAMS)
    parser.add_argument(
        "--layers", type=int, nargs="+", metavar="LAYER", help="decoder layers (default: all)"
    )
    parser.add_argument(
        "--noise", type=float, default=3.0, help="in standard deviations of the states (default: 3)"
    )
    parser.add_argument(
        "--draws", type=int, default=4, help="draws of the noise per layer (default: 4)"
    )
    parser.add_argument(
        "--rows", type=int, default=96, help="rows of a forward; fewer need less memory"
    )
    parser.add_argument(
        "--share",
        type=float,
        default=0.1,
        help="share of the largest effect from which a layer counts as read (default: 0.1)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure which layers the answers depend on, and propose the ones to edit."""
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.hparams import read_hparams, values_of
    from easyedit_dualedit.commands.records import records_of
    from easyedit_dualedit.commands.runs import alone_in, loaded_as, settings_of
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.experiments.layer_probe import LocateConfig
    from easyedit_dualedit.experiments.locate import locate, write_hparams
    from easyedit_dualedit.files import require_writable, write_json, write_text
    from easyedit_dualedit.measure.run import Run
    from easyedit_dualedit.model.backbone import Backbone
    from easyedit_dualedit.model.encoder import Encoder
    from easyedit_dualedit.model.families import BackboneConfig
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.plugin.hparams import (
        DualEditMultimodalHparams,
        DualEditMultimodalTrainingHparams,
    )
    from easyedit_dualedit.report.layers import layers_csv, layers_table
    from easyedit_dualedit.report.plots import plot_layers, plot_where_possible

    if arguments.archive is not None:
        raise ConfigError("--archive: the model alone is asked, without adapters; leave it out")
    folder: Path = arguments.output / arguments.name
    require_writable(folder)
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    config = LocateConfig(
        layers=None if arguments.layers is None else tuple(arguments.layers),
        noise=arguments.noise,
        share=arguments.share,
        draws=arguments.draws,
        rows=arguments.rows,
        seed=hparams.seed,
    )
    every = records_of(arguments, hparams.model_name, folder / "data", "train")
    # Of text alone there are no image tokens to compare with; where all are, the error says it.
    records = [record for record in every if record.request.shown] or every
    if arguments.data is None and arguments.limit is None:
        records = records[:_OWN_RECORDS]
    pictures = PictureFiles.opened(records, nearest=False)
    model, processor = load_model(hparams.model_name, **hparams.placement)
    backbone = BackboneConfig.read(hparams.backbone)
    encoder = Encoder(Backbone.of(model, backbone), processor)
    config.chosen(len(encoder.backbone.layers))
    probing = {key: value for key, value in dataclasses.asdict(config).items() if key != "share"}
    settings = settings_of(
        records,
        {},
        {},
        model=hparams.model_name,
        **loaded_as(hparams),
        backbone=dataclasses.asdict(backbone),
        probing=probing,
    )
    with alone_in(folder):
        shown_by = pictures.shown_by(records)
        stored = Run(folder, settings, fresh=arguments.fresh, shown=shown_by)
        effects = locate(records, encoder, config, stored)
    write_json(folder / "locate.json", effects)
    write_text(folder / "locate.csv", layers_csv(effects))
    values = values_of(arguments, DualEditMultimodalTrainingHparams)
    write_hparams(folder / "train.yaml", values, effects["proposal"])
    known = {item.name for item in dataclasses.fields(DualEditMultimodalHparams)}
    applied = {key: value for key, value in values.items() if key in known}
    write_hparams(folder / "apply.yaml", applied, effects["proposal"])
    plot_where_possible(plot_layers, effects, folder / "locate.png")
    shown = console()
    shown.print(layers_table(effects).for_terminal())
    if len(records) < len(every) and arguments.data is not None:
        shown.print(f"{len(every) - len(records)} records of text alone are left out")
    proposal = ", ".join(f"{name}: {layer}" for name, layer in effects["proposal"].items())
    shown.print(f"proposed: {proposal}; a starting point, `ablate --pairs` compares pairs")
    shown.print(
        f"written: {folder / 'train.yaml'}, for training; beside it apply.yaml, for edit and"
        " evaluate, and locate.json, locate.csv, locate.png"
    )
