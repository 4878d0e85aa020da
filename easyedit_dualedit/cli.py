"""The command line: the demo, training, one edit, evaluation."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from easyedit_dualedit import __version__
from easyedit_dualedit.config import GateKind
from easyedit_dualedit.errors import DualEditError

DEFAULT_COMMAND = "demo"

_COMMANDS = ("demo", "train", "edit", "evaluate", "locate", "ablate")

_EPILOG = """\
examples:
  run_multimodal_edit.py
      edit the bundled testbed model 300 times through EasyEdit and print one table
  run_multimodal_edit.py edit --image photo.jpg --prompt "What is this?" --target "a kite" \\
      --hparams hparams/DualEdit/llavaov-7b.yaml
  run_multimodal_edit.py train --hparams hparams/TRAINING/DualEdit/llavaov-7b.yaml \\
      --data vqa_train.json --images images/ --output adapters/llavaov-7b
  run_multimodal_edit.py evaluate --hparams hparams/DualEdit/llavaov-7b.yaml \\
      --data vqa_eval.json --images images/
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="run_multimodal_edit.py",
        description="DualEdit: knowledge editing of vision-language models, inside EasyEdit."
        " Without a command it runs the demo.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log what is being done")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="edit the bundled testbed model (the default)"))
    _add_train(commands.add_parser("train", help="train adapters for a model"))
    _add_edit(commands.add_parser("edit", help="make one edit and show the answers"))
    _add_evaluate(commands.add_parser("evaluate", help="edit the records of a file and measure"))
    _add_locate(commands.add_parser("locate", help="find the layers to edit"))
    _add_ablate(commands.add_parser("ablate", help="measure what each part of the method is worth"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 for a user's mistake (told in one line), 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    verbose = [item for item in arguments if item == "--verbose"]
    arguments = [item for item in arguments if item != "--verbose"]
    if not arguments or arguments[0] not in (*_COMMANDS, "-h", "--help", "--version"):
        is_option = not arguments or arguments[0].startswith("-")
        arguments = [DEFAULT_COMMAND, *arguments] if is_option else arguments
    arguments = verbose[:1] + arguments
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from easyedit_dualedit import commands

        getattr(commands, parsed.command)(parsed)
    except DualEditError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command continues where it stopped\n")
        return 130
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Edit the bundled testbed model with the bundled adapters, each edit made through EasyEdit"
        " and measured alone, and print one table."
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="train the adapters first instead of using bundled ones",
    )
    parser.add_argument(
        "--steps", type=_count, help="optimiser steps with --train (default: those of the hparams)"
    )
    parser.add_argument("--count", type=_count, default=300, help="edits (default: 300)")
    _add_run(parser, "demo")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.description = "Train the adapters of a model on edit records and calibrate the gate."
    _add_model(parser, "hparams/TRAINING/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser)
    parser.add_argument("--steps", type=_count, help="optimiser steps, instead of max_iters")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder that the adapters are written to"
    )


def _add_edit(parser: argparse.ArgumentParser) -> None:
    parser.description = "Make one edit and show what the model answers before and after."
    _add_model(parser, "hparams/DualEdit/<model>.yaml; default: the testbed's")
    parser.add_argument("--image", type=Path, help="picture of the edit; none for a text edit")
    parser.add_argument("--prompt", required=True, help="question of the edit")
    parser.add_argument("--target", required=True, help="answer that the model should give")
    parser.add_argument(
        "--ask", action="append", default=[], metavar="QUESTION", help="ask this too; repeatable"
    )
    parser.add_argument("--ask-image", type=Path, help="picture of the --ask questions")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Edit every record of a file in MMEdit's format, alone, and measure all of its queries."
    )
    _add_model(parser, "hparams/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser, required=False)
    parser.add_argument(
        "--gates",
        nargs="+",
        choices=get_args(GateKind),
        metavar="KIND",
        help=f"a row for each of these gates ({', '.join(get_args(GateKind))}), instead of the"
        " hparams' gate",
    )
    parser.add_argument(
        "--specificity",
        action="store_true",
        help="also ask RI, NI and CI: half of the edit, and the samples most like it",
    )
    parser.add_argument(
        "--others",
        type=Path,
        metavar="FILE",
        help="records that --specificity draws other pictures and questions from, usually the"
        " training records; pictures are in --images (default: the other records of --data)",
    )
    _add_run(parser, "evaluate")


def _add_locate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Add noise to the states of image tokens, of prompt text and of both at every decoder"
        " layer, measure how the unedited model's answers change, and propose text_layer and"
        " vision_layer."
    )
    _add_model(parser, "hparams/TRAINING/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser, required=False)
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
    _add_run(parser, "locate")


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train and measure variants of the method that differ in one part each: adapters, layers,"
        " gate, signal, losses. Variants that are done already are only shown."
    )
    _add_model(parser, "hparams/TRAINING/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser, required=False)
    parser.add_argument(
        "--measured", type=Path, metavar="FILE", help="records to measure on; needed with --data"
    )
    parser.add_argument("--steps", type=_count, default=600, help="of training (default: 600)")
    parser.add_argument("--count", type=_count, default=300, help="edits measured (default: 300)")
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
    _add_run(parser, "ablate")


def _add_model(parser: argparse.ArgumentParser, hparams: str) -> None:
    parser.add_argument("--hparams", type=Path, help=hparams)
    parser.add_argument(
        "--model", help="model folder or hub id, instead of the hparams' model_name"
    )
    parser.add_argument("--archive", help="trained adapters, instead of the hparams' archive")
    parser.add_argument("--device", help="cpu, cuda:0, auto, ..., instead of the hparams' device")


def _add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    default = "" if required else " (default: the testbed's)"
    parser.add_argument(
        "--data", type=Path, required=required, help=f"JSON file in MMEdit's format{default}"
    )
    parser.add_argument(
        "--images",
        type=Path,
        required=required,
        help="folder that its picture names are relative to",
    )
    parser.add_argument("--limit", type=_count, help="use only the first records")
    parser.add_argument(
        "--template",
        default="{}",
        help='what a picture\'s question is put into, such as "{} The answer is:"',
    )


def _add_run(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="parent folder (default: outputs)"
    )
    parser.add_argument("--name", default=name, help=f"folder in it (default: {name})")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of continuing")


def _pair(text: str) -> tuple[int, int]:
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pair of layers such as 2,3") from None
    return first, second


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
