"""The command `edit`: one edit, and the answers before and after it."""

import argparse
from dataclasses import replace
from pathlib import Path

from easyedit_dualedit.commands.arguments import EDIT_HPARAMS, add_model

HELP = "make one edit and show the answers"
DESCRIPTION = "Make one edit and show what the model answers before and after."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, EDIT_HPARAMS)
    parser.add_argument("--image", type=Path, help="picture of the edit; none for a text edit")
    parser.add_argument("--prompt", required=True, help="question of the edit")
    parser.add_argument("--target", required=True, help="answer that the model should give")
    parser.add_argument(
        "--ask", action="append", default=[], metavar="QUESTION", help="ask this too; repeatable"
    )
    parser.add_argument("--ask-image", type=Path, help="picture of the --ask questions")


def run(arguments: argparse.Namespace) -> None:
    """Make one edit and print the answers before and after."""
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.editors import answer_to, editor_of
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.model.inputs import Query
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.report.table import Table, texts

    request = Query(arguments.prompt, arguments.image, arguments.target)
    asked = [Query(prompt, arguments.ask_image or arguments.image) for prompt in arguments.ask]
    editor = editor_of(read_hparams(arguments, DualEditMultimodalHparams))
    edited = editor.edit(request.image, request.prompt, arguments.target)
    rows = []
    for query in (replace(request, target=None), *asked):
        batch = editor.encoder.encode([query])
        routing = edited.route(layout=batch.layout, **batch.inputs)
        rows.append(
            [
                query.prompt,
                answer_to(editor.backbone.model, editor.encoder, query),
                answer_to(edited, editor.encoder, query),
                f"{float(routing.similarity[0]):.3f} (threshold {editor.gate.threshold:.3f})",
                "open" if bool(routing.is_open[0]) else "closed",
            ]
        )
    columns = texts("prompt", "before", "after", "similarity", "gate")
    title = f"edit: {arguments.prompt!r} -> {arguments.target!r}"
    console().print(Table(columns, rows, title).for_terminal())
