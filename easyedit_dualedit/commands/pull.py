"""The command `pull`: adapters or edits of the hub become a folder."""

import argparse
from pathlib import Path

from easyedit_dualedit.commands.arguments import given_path

HELP = "fetch adapters or edits from the Hugging Face hub"
DESCRIPTION = (
    "Fetch adapters, or edits, of a repository of the Hugging Face hub into a folder: both files"
    " and the card, checked, all or nothing. Nothing needs to be pulled to be used once: --archive"
    " takes USER/NAME, too."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    parser.add_argument("repository", metavar="USER/NAME")
    parser.add_argument("--output", type=given_path, help="new folder (default: NAME)")
    parser.add_argument("--revision", help="branch, tag or commit (default: the main branch)")
    parser.add_argument("--token", help="instead of the one you are logged in with, or HF_TOKEN")
    parser.add_argument(
        "--fresh", action="store_true", help="replace adapters or edits that are in the folder"
    )


def run(arguments: argparse.Namespace) -> None:
    """Fetch a repository's files, check them and put them in place."""
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.method.shared_folder import (
        ARCHIVE_FILES,
        CARD_FILE,
        EDIT_FILES,
        SharedFolder,
        put_in_place,
        require_room,
    )
    from easyedit_dualedit.storage.hub import downloaded, require_name

    require_name(arguments.repository)
    output = arguments.output or Path(arguments.repository.rpartition("/")[2])
    require_room(output, may_replace=arguments.fresh)
    fetched = downloaded(
        arguments.repository,
        (*ARCHIVE_FILES, *EDIT_FILES, CARD_FILE),
        revision=arguments.revision,
        token=arguments.token,
    )
    put_in_place(SharedFolder.read(fetched), output, may_replace=arguments.fresh)
    console().print(f"written: {output}, {SharedFolder.read(output).summary}", markup=False)
