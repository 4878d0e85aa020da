"""The command `ablate`: what each part of the method is worth."""

import argparse
import dataclasses
from pathlib import Path

from easyedit_dualedit.commands.arguments import TRAINING_HPARAMS, add_run, count, given_path
from easyedit_dualedit.errors import ConfigError

HELP = "measure what each part of the method is worth"
DESCRIPTION = (
    "Train and measure variants of the method that differ in one part each: adapters, layers, gate,"
    " signal, losses. Variants that are done already are only shown."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_run(parser, "ablate", TRAINING_HPARAMS)
    parser.add_argument(
        "--measured",
        type=given_path,
        metavar="FILE",
        help="records to measure on; needed with --data",
    )
    parser.add_argument("--steps", type=count, default=600, help="of training (default: 600)")
    parser.add_argument("--count", type=count, default=300, help="edits measured (default: 300)")
    parser.add_argument(
        "--variants", nargs="*", metavar="NAME", help="only these of the variants; none: no variant"
    )
    parser.add_argument(
        "--pairs",
        nargs="+",
        type=_pair,
        default=[],
        metavar="TEXT,VISION",
        help="also these pairs of layers, such as 2,3",
    )


def run(arguments: argparse.Namespace) -> None:
    """Train and measure variants of the method, and print one table."""
    from rich.text import Text

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.records import own_records, records_of
    from easyedit_dualedit.commands.runs import alone_in, loaded_as, settings_of
    from easyedit_dualedit.commands.trained_targets import split_of
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.data.records import load_records
    from easyedit_dualedit.experiments.ablate import (
        ablate,
        is_done,
        layer_pairs,
        layer_pairs_in,
        variants,
    )
    from easyedit_dualedit.files import require_writable, write_json, write_text
    from easyedit_dualedit.measure.target_split import told
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
    from easyedit_dualedit.report.ablation import (
        ablation_csv,
        ablation_split_table,
        ablation_table,
    )
    from easyedit_dualedit.report.plots import plot_ablation, plot_where_possible
    from easyedit_dualedit.report.target_split import split_line
    from easyedit_dualedit.train.checkpoint import records_digest
    from easyedit_dualedit.train.trainer import targets_taught

    if arguments.archive is not None:
        raise ConfigError("--archive: every variant trains adapters of its own; leave it out")
    folder: Path = arguments.output / arguments.name
    require_writable(folder)
    if (arguments.data is None) != (arguments.measured is None):
        raise ConfigError("--data needs --measured, the records to measure on, and the reverse")
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    training = dataclasses.replace(hparams.training_config(), steps=arguments.steps)
    config = hparams.dualedit_config()
    every = variants(config, training)
    names = [variant.name for variant in every]
    wanted = names if arguments.variants is None else arguments.variants
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigError(f"no variants {unknown}; there are {names}")
    chosen = [variant for variant in every if variant.name in wanted]
    chosen += layer_pairs(config, training, arguments.pairs)
    if not chosen:
        raise ConfigError("nothing to measure; name --variants or --pairs")
    records = records_of(arguments, hparams.model_name, folder / "data", "train")
    if arguments.measured is None:
        own = own_records(hparams.model_name, folder / "data", "eval")
        measured = own[: arguments.count]
    else:
        measured = load_records(
            arguments.measured,
            arguments.images,
            template=arguments.template,
            allow_outside=arguments.allow_outside,
            limit=arguments.count,
        )
    pictures = PictureFiles.opened([*records, *measured], nearest=False)
    model, processor = load_model(hparams.model_name, **hparams.placement)
    settings = settings_of(
        measured,
        {},
        {},
        model=hparams.model_name,
        **loaded_as(hparams),
        trained_on=records_digest(records),
        training_pictures=pictures.digest_of(records),
    )
    shown_by = pictures.shown_by(measured)
    with alone_in(folder):
        done = [
            variant
            for variant in (*every, *layer_pairs_in(folder, config, training))
            if variant not in chosen and is_done(variant, folder, settings)
        ]
        # A target that any of them is trained on counts as seen.
        seen = {
            target
            for variant in (*chosen, *done)
            for target in targets_taught(records, variant.training, processor.tokenizer)
        }
        split = split_of(measured, archive=None, targets=sorted(seen))
        rows = [
            row
            for variants, fresh in ((chosen, arguments.fresh), (done, False))
            for row in ablate(
                variants,
                model,
                processor,
                records,
                measured,
                folder,
                settings,
                split=split,
                fresh=fresh,
                shown=shown_by,
                pictures=settings["training_pictures"],
            )
        ]
        write_json(folder / "ablation.json", rows)
        write_text(folder / "ablation.csv", ablation_csv(rows))
    tables = [ablation_table(rows), *filter(None, [ablation_split_table(rows, told(split))])]
    line = split_line({"targets": told(split)})
    parts = [*(table.markdown() for table in tables), f"{line}\n"]
    write_text(folder / "ablation.md", "\n".join(parts))
    plot_where_possible(plot_ablation, rows, folder / "ablation.png")
    shown = console()
    for table in tables:
        shown.print(table.for_terminal())
    shown.print(Text(line))
    shown.print(f"written: {folder / 'ablation.json'}, .csv, .md and .png beside it")


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of layers such as 2,3") from None
    return first, second
