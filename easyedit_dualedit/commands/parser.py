"""The command line: the demo, training, one edit, evaluation."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from easyedit_dualedit import __version__
from easyedit_dualedit.errors import DualEditError
from easyedit_dualedit.measure.protocols import PROTOCOLS
from easyedit_dualedit.method.config import GateKind

DEFAULT_COMMAND = "demo"

_MODULES = {
    "demo": "shared",
    "train": "shared",
    "edit": "shared",
    "evaluate": "shared",
    "locate": "shared",
    "ablate": "shared",
    "benchmark": "benchmark",
    "merge": "benchmark",
    "many": "many",
    "edits": "edits",
    "chat": "edits",
}
"""Command -> the module whose function of the same name carries it out."""

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
    _add_benchmark(commands.add_parser("benchmark", help="compare with EasyEdit's own methods"))
    _add_merge(commands.add_parser("merge", help="put the shards of a benchmark together"))
    _add_many(commands.add_parser("many", help="measure many edits in one model"))
    _add_edits(commands.add_parser("edits", help="keep many edits in a file"))
    _add_chat(commands.add_parser("chat", help="ask about a picture with edits applied"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 for a user's mistake (told in one line), 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    verbose = [item for item in arguments if item == "--verbose"]
    arguments = [item for item in arguments if item != "--verbose"]
    if not arguments or arguments[0] not in (*_MODULES, "-h", "--help", "--version"):
        is_option = not arguments or arguments[0].startswith("-")
        arguments = [DEFAULT_COMMAND, *arguments] if is_option else arguments
    arguments = verbose[:1] + arguments
    parsed = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        module = importlib.import_module(f"easyedit_dualedit.commands.{_MODULES[parsed.command]}")
        getattr(module, parsed.command)(parsed)
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


def _add_benchmark(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make the same edits with DualEdit, with fine-tuning and with EasyEdit's own methods, one"
        " edit at a time; measure each under every protocol; write a table, a page, CSV and JSON."
        " What needs training is trained first. The same command continues where it stopped."
    )
    _add_model(parser, "hparams/TRAINING/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser, required=False)
    parser.add_argument(
        "--train",
        type=Path,
        metavar="FILE",
        help="records to train on, and to look for leaks in; pictures are in --images",
    )
    parser.add_argument("--train-limit", type=_count, help="use only the first of --train")
    parser.add_argument(
        "--stand-ins",
        action="store_true",
        help="draw a picture for every name, to try records without their pictures; the numbers"
        " then mean nothing",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="only these (default: all there are)"
    )
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, metavar="NAME", help=", ".join(PROTOCOLS)
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="a hyperparameter of a method, such as mend.max_iters=2000; repeatable",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="take the records of one of N parts, such as 0/2; every part may have its own process",
    )
    parser.add_argument("--title", help="of the page")
    _add_run(parser, "benchmark")


def _add_merge(parser: argparse.ArgumentParser) -> None:
    parser.description = "Put the folders of one benchmark's shards together and write its reports."
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of a shard")
    parser.add_argument("--output", type=Path, required=True, help="folder of the whole")
    parser.add_argument("--images", type=Path, help="pictures for the page")


def _add_many(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make up to a thousand edits in one model, one after the other, and ask about all of them"
        " afterwards; beside DualEdit, EasyEdit's GRACE, WISE and LoRA where EasyEdit's master is"
        " installed. Also: what the gate opens for as edits grow in number, what routing costs, and"
        " quality against size. The same command continues where it stopped."
    )
    _add_model(parser, "hparams/DualEdit/<model>.yaml; default: the testbed's")
    _add_data(parser, required=False)
    parser.add_argument(
        "--counts",
        nargs="+",
        type=_count,
        default=[1, 10, 100, 1000],
        metavar="N",
        help="numbers of edits (default: 1 10 100 1000)",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="only these (default: all there are)"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="also write the report here, plots beside it"
    )
    _add_run(parser, "many")


def _add_edits(parser: argparse.ArgumentParser) -> None:
    parser.description = "Keep edits in a folder: edits.safetensors and edits.json."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    hparams = "hparams/DualEdit/<model>.yaml; default: the testbed's"

    adding = actions.add_parser("add", help="make edits and add them")
    _add_model(adding, hparams)
    adding.add_argument("--image", type=Path, help="picture of the edit; none for a text edit")
    adding.add_argument("--prompt", help="question of the edit")
    adding.add_argument("--target", help="answer that the model should give")
    adding.add_argument("--data", type=Path, help="instead, the edits of a file in MMEdit's format")
    adding.add_argument("--images", type=Path, help="folder that its pictures are relative to")
    adding.add_argument("--limit", type=_count, help="use only the first records")

    listing = actions.add_parser("list", help="show the edits")
    removing = actions.add_parser("remove", help="remove edits")
    removing.add_argument("ids", nargs="+", metavar="ID", help="as `list` shows them")
    applying = actions.add_parser("apply", help="ask questions with the edits applied")
    _add_model(applying, hparams)
    applying.add_argument("--image", type=Path, help="picture of the questions")
    applying.add_argument(
        "--ask", action="append", required=True, metavar="QUESTION", help="repeatable"
    )
    exporting = actions.add_parser("export", help="write some of the edits to another folder")
    exporting.add_argument("ids", nargs="*", metavar="ID", help="as `list` shows them; none: all")
    exporting.add_argument("--output", type=Path, required=True, help="folder of the copy")
    for action in (adding, listing, removing, applying, exporting):
        _add_edits_folder(action)


def _add_chat(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Ask questions about a picture with edits applied; says which edit fired and how similar"
        " the question is to it."
    )
    _add_model(parser, "hparams/DualEdit/<model>.yaml; default: the testbed's")
    _add_edits_folder(parser)
    parser.add_argument("--image", type=Path, help="the picture; none for questions of text")


def _add_edits_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--edits", type=Path, required=True, metavar="FOLDER", help="of the edits")


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


def _shard(text: str) -> tuple[int, int]:
    try:
        place, count = (int(part) for part in text.split("/"))
    except ValueError:
        place, count = 0, 0
    if not 0 <= place < count:
        raise argparse.ArgumentTypeError(f"{text!r} is no shard such as 0/2 or 1/2")
    return place, count


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
