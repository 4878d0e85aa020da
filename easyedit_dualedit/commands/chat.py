"""The command `chat`: questions about a picture, with edits applied."""

import argparse
import sys

from easyedit_dualedit.commands.arguments import (
    EDIT_HPARAMS,
    SHOWN,
    add_edits_folder,
    add_model,
    given_path,
)
from easyedit_dualedit.errors import DataError

HELP = "ask about a picture with edits applied"
DESCRIPTION = (
    "Ask questions about a picture with edits applied; says which edit fired and how similar the"
    " question is to it, and which edits do not take."
)

_LEAVE = ("exit", "quit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, EDIT_HPARAMS)
    add_edits_folder(parser)
    parser.add_argument("--image", type=given_path, help=f"the {SHOWN}; none for questions of text")


def run(arguments: argparse.Namespace) -> None:
    """Answer questions about a picture with the edits applied, until the input ends."""
    from rich.text import Text

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.opened_edits import asked, not_taking, opened
    from easyedit_dualedit.model.inputs import Query, open_image
    from easyedit_dualedit.model.video_frames import strip_of
    from easyedit_dualedit.report.page.wording import counted

    if sys.stdin is None:
        raise DataError("there is no input to read questions from: standard input is closed")
    video = Query(".", arguments.image).video
    if arguments.image is not None:
        _ = open_image(arguments.image) if video is None else strip_of(video, 1)
    editor, memory = opened(arguments)
    if video is not None:
        editor.encoder.clip_of(Query(".", video))  # what is wrong with it is told before a question
    shown = console()
    if not_taking(memory):
        shown.print(Text(not_taking(memory), style="bold"))
    shown.print(f"{counted(len(memory), 'edit')}; an empty line, {' or '.join(_LEAVE)} ends it")
    while True:
        shown.print("> ", end="")
        prompt = sys.stdin.readline().strip()
        if not prompt or prompt.lower() in _LEAVE:
            return
        try:
            answer, fired = asked(editor, memory, Query(prompt, arguments.image))
        except DataError as error:  # another question may do
            shown.print(Text(f"error: {error}"))
            continue
        shown.print(Text(answer))
        shown.print(Text(fired, style="dim"))
