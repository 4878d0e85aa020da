"""The command `edit`: one edit, and the answers before and after it."""

import argparse

from easyedit_dualedit.commands.arguments import EDIT_HPARAMS, SHOWN, add_model, given_path
from easyedit_dualedit.errors import ConfigError

HELP = "make one edit and show the answers"
DESCRIPTION = (
    "Make one edit and show what the model answers before and after. An edit that does not take"
    " (the edited model answers its own question otherwise) is told in a line below the table; the"
    " exit code is 0 all the same."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_model(parser, EDIT_HPARAMS)
    parser.add_argument(
        "--image", type=given_path, help=f"{SHOWN} of the edit; none for a text edit"
    )
    parser.add_argument("--prompt", required=True, help="question of the edit")
    parser.add_argument("--target", required=True, help="answer that the model should give")
    parser.add_argument(
        "--ask", action="append", default=[], metavar="QUESTION", help="ask this too; repeatable"
    )
    parser.add_argument("--ask-image", type=given_path, help="picture of the --ask questions")


def run(arguments: argparse.Namespace) -> None:
    """Make one edit and print the answers before and after."""
    from rich.text import Text

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.editors import answer_to, editor_of
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.method.edit_check import EditCheck
    from easyedit_dualedit.model.inputs import Query
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.report.table import Table, texts

    if arguments.ask_image is not None and not arguments.ask:
        raise ConfigError("--ask-image is the picture of --ask; give both, or neither")
    request = Query(arguments.prompt, arguments.image, arguments.target)
    asked = [Query(prompt, arguments.ask_image or arguments.image) for prompt in arguments.ask]
    editor = editor_of(read_hparams(arguments, DualEditMultimodalHparams))
    edited = editor.edit(request.image, request.prompt, arguments.target)
    rows, checks = [], []
    for query in (request, *asked):
        batch = editor.encoder.encode([query], with_target=False)
        routing = edited.route(layout=batch.layout, **batch.inputs)
        similarity, is_open = float(routing.similarity[0]), bool(routing.is_open[0])
        before = answer_to(editor.backbone.model, editor.encoder, query)
        after = answer_to(edited, editor.encoder, query)
        checks.append(EditCheck(query, after, similarity, is_open))
        rows.append(
            [
                query.prompt,
                before,
                after,
                f"{similarity:.3f} (threshold {editor.gate.threshold:.3f})",
                "open" if is_open else "closed",
            ]
        )
    columns = texts("prompt", "before", "after", "similarity", "gate")
    title = f"edit: {arguments.prompt!r} -> {arguments.target!r}"
    shown = console()
    shown.print(Table(columns, rows, title).for_terminal())
    if not checks[0].takes:
        shown.print(Text(checks[0].told(), style="bold"))
