"""The command `app`: a page in the browser, on which people edit a model and ask it."""

import argparse
from pathlib import Path

from easyedit_dualedit.commands.arguments import EDIT_HPARAMS, add_model, count, given_path

HELP = "edit a model and ask it on a page in the browser (extra: app)"
DESCRIPTION = (
    "Show a page in the browser: ask about a picture, say what the answer should be, and see it"
    " change, with what the gate decides. Without --hparams it is the emoji model where `emoji get`"
    " has put it, and else the testbed. Everybody who opens the page has edits of their own; they"
    " are kept in a folder, and are there again when their browser comes back. Needs the extra"
    " `app`."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, EDIT_HPARAMS, "the emoji model's where it is, else the testbed's")
    parser.add_argument(
        "--edits", type=given_path, metavar="FOLDER", help="edits that everybody begins with"
    )
    parser.add_argument(
        "--sessions",
        type=given_path,
        default=Path("outputs/app"),
        metavar="FOLDER",
        help="where people's edits are kept (default: outputs/app)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: 127.0.0.1, for this machine alone)",
    )
    parser.add_argument("--port", type=count, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--share",
        action="store_true",
        help="a public address by Gradio's servers: whoever knows it may use the page",
    )


def run(arguments: argparse.Namespace) -> None:
    """Load the model and serve the page until it is interrupted."""
    from easyedit_dualedit.app.extra import gradio

    gradio()  # what is missing is told before a model is loaded
    from easyedit_dualedit.app.page import Page
    from easyedit_dualedit.app.serving import check_address, served
    from easyedit_dualedit.app.sessions import Sessions
    from easyedit_dualedit.app.shared_editor import SharedEditor
    from easyedit_dualedit.commands.app_examples import examples_of
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.editors import editor_of
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.records import name_of
    from easyedit_dualedit.files import require_writable
    from easyedit_dualedit.method.edit_file import EditFile
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.testbed.emoji import places

    check_address(arguments.host, arguments.port)
    require_writable(arguments.sessions)
    if arguments.edits is not None:
        EditFile.load(arguments.edits)  # a damaged file is told before a model is loaded
    if arguments.hparams is None and arguments.model is None and places.has_model():
        arguments.hparams = Path(places.NAME)
    hparams = read_hparams(arguments, DualEditMultimodalHparams)
    name = name_of(hparams.model_name) or Path(hparams.model_name).name
    shared = SharedEditor(editor_of(hparams), name)
    sessions = Sessions(shared, arguments.sessions, arguments.edits)
    page = Page(sessions, examples_of(hparams.model_name))
    blocks = served(
        page, host=arguments.host, port=arguments.port, share=arguments.share, waits=False
    )
    shown = console()
    shown.print(f"{blocks.share_url or blocks.local_url} (end it with Ctrl-C)")
    blocks.block_thread()
