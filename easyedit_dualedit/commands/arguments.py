"""Arguments that several commands have, and texts that are numbers."""

import argparse
import math
from pathlib import Path

EDIT_HPARAMS = "short name such as llava-1.5-7b, or a YAML file such as those of hparams/DualEdit"
TRAINING_HPARAMS = (
    "short name such as llava-1.5-7b, or a YAML file such as those of hparams/TRAINING/DualEdit"
)
_UNITS = {"GiB": 2**30, "MiB": 2**20, "GB": 10**9, "MB": 10**6, "": 1}

PLAIN_TEMPLATE = "{}"
"""The question as it is."""

SHOWN = "picture, video file or folder of frames"
"""What may be named after --image."""


def add_model(
    parser: argparse.ArgumentParser, hparams: str, default: str = "the testbed's"
) -> None:
    """Add what says which model is edited, where, and with which adapters."""
    parser.add_argument("--hparams", type=given_path, help=f"{hparams} (default: {default})")
    parser.add_argument(
        "--model", help="model folder or hub id, instead of the hparams' model_name"
    )
    parser.add_argument(
        "--archive",
        help="trained adapters, a folder or USER/NAME on the hub, instead of the hparams' archive",
    )
    parser.add_argument("--device", help="cpu, cuda:0, auto, ..., instead of the hparams' device")
    parser.add_argument(
        "--dtype", help="auto, bfloat16, float16 or float32, instead of the hparams' dtype"
    )


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add what says which records are read; models of ours have some."""
    parser.add_argument(
        "--data",
        type=given_path,
        help="JSON file in MMEdit's format (default: the model's own; testbed and emoji have some)",
    )
    parser.add_argument(
        "--images",
        type=given_path,
        help="folder that its picture names are relative to",
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="take names of pictures that are absolute or lead out of --images",
    )
    parser.add_argument("--limit", type=count, help="use only the first records")
    parser.add_argument(
        "--template",
        default=PLAIN_TEMPLATE,
        help='what a picture\'s question is put into, such as "{} The answer is:"',
    )


def add_training_records(parser: argparse.ArgumentParser) -> None:
    """Add the file that says which targets were seen in training."""
    parser.add_argument(
        "--training-records",
        type=given_path,
        metavar="FILE",
        help="records that the adapters were trained on: reliability and generality are split into"
        " edits whose target is among theirs and the others (default: what the adapters themselves"
        " say)",
    )


def add_run(parser: argparse.ArgumentParser, name: str, hparams: str) -> None:
    """Add what every run on records has: its model, its records, and the folder that it is in."""
    add_model(parser, hparams)
    add_data(parser)
    add_run_folder(parser, name)


def add_run_folder(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what says which folder a run is in, and whether it continues what is there."""
    parser.add_argument(
        "--output",
        type=given_path,
        default=Path("outputs"),
        help="parent folder (default: outputs)",
    )
    parser.add_argument("--name", default=name, help=f"folder in it (default: {name})")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of continuing")


def add_edits_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of a file of edits."""
    parser.add_argument(
        "--edits", type=given_path, required=True, metavar="FOLDER", help="of the edits"
    )


def add_memory(parser: argparse.ArgumentParser) -> None:
    """Add what says how much memory the command may take."""
    parser.add_argument(
        "--memory",
        type=memory,
        metavar="SIZE",
        help="memory that the model and its rows may take, such as 20GiB (default: what the device"
        " has free); rows are packed to it, and fewer share a forward where it ends all the same",
    )


def memory(text: str) -> int:
    """Return bytes of a text such as 20GiB, 800MiB or 24000000000.

    Raises:
        ArgumentTypeError: if the text is none.
    """
    for unit, factor in _UNITS.items():
        number = text.strip().removesuffix(unit)
        if unit and number == text.strip():
            continue
        try:
            value = float(number)
        except ValueError:
            break
        if math.isfinite(value) and value > 0:
            return int(value * factor)
    raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory such as 20GiB")


def given_path(text: str) -> Path:
    """Return a path; that of no text would be the current folder.

    Raises:
        ArgumentTypeError: if the text is blank.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is no path; leave the option out, or give one")
    return Path(text)


def count(text: str) -> int:
    """Return a whole number of at least 1.

    Raises:
        ArgumentTypeError: if the text is none.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
