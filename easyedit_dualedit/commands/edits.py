"""The command `edits`: a file of edits that grows, shrinks, is asked and is shared."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_dualedit.commands.arguments import (
    EDIT_HPARAMS,
    SHOWN,
    add_edits_folder,
    add_memory,
    add_model,
    count,
    given_path,
)
from easyedit_dualedit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from easyedit_dualedit.method.edit_file import EditFile
    from easyedit_dualedit.method.edit_memory import EditMemory
    from easyedit_dualedit.method.stored_edit import Provenance
    from easyedit_dualedit.model.inputs import Query

HELP = "keep many edits in a file"
DESCRIPTION = "Keep edits in a folder: edits.safetensors and edits.json."

_ADDING = (
    "Make edits and add them. Each is asked about once all are added; those that do not take (the"
    " edited model answers their own question otherwise) are told, and `list`, `apply` and `chat`"
    " say so, too. They are added all the same, and the exit code is 0. Edits of a file are saved"
    " as they are made, and those that are there already are left out, so the same command goes on"
    " where it was stopped. Several processes may add to one folder."
)
_READ_AT_ONCE = 16
_SAVED_EVERY = 20.0
"""Seconds of work that are lost at most, but for the time that saving takes itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    adding = actions.add_parser("add", help="make edits and add them", description=_ADDING)
    add_model(adding, EDIT_HPARAMS)
    adding.add_argument(
        "--image", type=given_path, help=f"{SHOWN} of the edit; none for a text edit"
    )
    adding.add_argument("--prompt", help="question of the edit")
    adding.add_argument("--target", help="answer that the model should give")
    adding.add_argument(
        "--data", type=given_path, help="instead, the edits of a file in MMEdit's format"
    )
    adding.add_argument(
        "--images", type=given_path, help="folder that its pictures are relative to"
    )
    adding.add_argument(
        "--allow-outside",
        action="store_true",
        help="take names of pictures that are absolute or lead out of --images",
    )
    adding.add_argument("--limit", type=count, help="use only the first records")
    add_memory(adding)

    listing = actions.add_parser("list", help="show the edits")
    removing = actions.add_parser("remove", help="remove edits")
    removing.add_argument("ids", nargs="+", metavar="ID", help="as `list` shows them")
    applying = actions.add_parser("apply", help="ask questions with the edits applied")
    add_model(applying, EDIT_HPARAMS)
    applying.add_argument("--image", type=given_path, help=f"{SHOWN} of the questions")
    applying.add_argument(
        "--ask", action="append", required=True, metavar="QUESTION", help="repeatable"
    )
    exporting = actions.add_parser("export", help="write some of the edits to another folder")
    exporting.add_argument("ids", nargs="*", metavar="ID", help="as `list` shows them; none: all")
    exporting.add_argument("--output", type=given_path, required=True, help="folder of the copy")
    for action in (adding, listing, removing, applying, exporting):
        add_edits_folder(action)


def run(arguments: argparse.Namespace) -> None:
    """Do what `edits add`, `list`, `remove`, `apply` or `export` says."""
    actions = {
        "add": _add,
        "list": _list,
        "remove": _remove,
        "apply": _apply,
        "export": _export,
    }
    actions[arguments.action](arguments)


def _add(arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.opened_edits import opened
    from easyedit_dualedit.files import require_writable
    from easyedit_dualedit.report.page.wording import counted

    requests = _requests(arguments)
    require_writable(arguments.edits)
    _, memory = opened(arguments, may_be_new=True)
    wanted = _missing(memory, requests)
    saved = time.monotonic()
    for start in range(0, len(wanted), _READ_AT_ONCE):
        memory.add(wanted[start : start + _READ_AT_ONCE])
        if time.monotonic() - saved > _SAVED_EVERY:
            memory.save(arguments.edits)
            saved = time.monotonic()
    memory.save(arguments.edits)
    # Those of an earlier command that was stopped may not have been asked yet.
    checks = memory.check(requests)
    total = memory.save(arguments.edits)
    shown = console()
    held = [memory.find(request) for request in requests]
    ids = [edit.id for edit in held if edit is not None]
    asked = {
        identifier: (request, check)
        for identifier, request, check in zip(ids, requests, checks, strict=True)
    }
    if len(asked) < len(requests):
        shown.print(f"{len(requests) - len(asked)} of {len(requests)} requests repeat others")
    if len(wanted) < len(asked):
        shown.print(f"{len(asked) - len(wanted)} of {len(asked)} edits are there already")
    for identifier, (request, check) in asked.items():
        shown.print(Text(f"{identifier}  {request.prompt} -> {request.target}"))
        if not check.takes:
            shown.print(Text(f"{identifier}  {check.told()}", style="bold"))
    taken = sum(check.takes for _, check in asked.values())
    if taken < len(asked):
        shown.print(f"{len(asked) - taken} of {len(asked)} edits added do not take")
    per_edit = memory.stored_bytes / max(1, len(memory)) / 1000
    shown.print(f"{counted(total, 'edit')} in {arguments.edits}, {per_edit:.1f} kB each")


def _missing(memory: "EditMemory", requests: "list[Query]") -> "list[Query]":
    """Return the requests whose edits are not held, or were overruled by others since.

    Of those that come again, the last one counts.
    """
    from easyedit_dualedit.method.stored_edit import question_of

    # By what pictures show: one may have several files.
    asked = [(question_of(request), request.target) for request in requests]
    last = dict(asked)
    again = {each: place for place, each in enumerate(asked)}
    newest = {edit.provenance.question: edit.provenance.target for edit in memory}
    held = {(edit.provenance.question, edit.provenance.target) for edit in memory}
    return [
        request
        for place, (request, each) in enumerate(zip(requests, asked, strict=True))
        if again[each] == place and not (each in held and newest[each[0]] == last[each[0]])
    ]


def _list(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.method.edit_file import EditFile
    from easyedit_dualedit.report.page.wording import counted
    from easyedit_dualedit.report.table import Table, numbers, texts

    stored = EditFile.load(arguments.edits)
    rows = []
    newest = {edit.provenance.question: edit for edit in stored.edits}
    for edit in stored.edits:
        about = edit.provenance
        pictures = " ".join(about.pictures) or "-"
        size = f"{edit.stored_bytes / 1000:.1f}"
        winner = newest[about.question]
        overruled = about.target != winner.provenance.target
        takes = f"no: {winner.id} is newer" if overruled else _taking(about)
        rows.append([edit.id, about.second, about.prompt, about.target, takes, pictures, size])
    columns = [*texts("id", "made", "prompt", "target", "takes", "pictures"), *numbers("kB")]
    title = f"{counted(len(stored.edits), 'edit')} in {arguments.edits}, oldest first"
    console().print(Table(columns, rows, title).for_terminal())


def _taking(about: "Provenance") -> str:
    if about.takes is None:
        return "not asked"
    return "yes" if about.takes else f"no: {about.answer!r}"


def _remove(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.method.edit_file import EditFile
    from easyedit_dualedit.method.stored_edit import without

    EditFile.load(arguments.edits)  # a mistake in the folder's name makes no folder

    def shrunk(stored: EditFile | None) -> EditFile:
        if stored is None:
            raise DataError(f"{arguments.edits} holds no edits any longer")
        _require_ids(stored, arguments.ids, arguments.edits)
        return EditFile(stored.owner, tuple(without(stored.edits, {*arguments.ids})))

    left = EditFile.change(arguments.edits, shrunk)
    console().print(f"{len(set(arguments.ids))} removed, {len(left.edits)} left")


def _export(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.method.edit_file import EditFile
    from easyedit_dualedit.report.page.wording import counted

    stored = EditFile.load(arguments.edits)
    _require_ids(stored, arguments.ids, arguments.edits)
    chosen = tuple(edit for edit in stored.edits if not arguments.ids or edit.id in arguments.ids)

    def copied(there: EditFile | None) -> EditFile:
        if there is not None:
            raise ConfigError(f"{arguments.output} holds edits already; give another folder")
        return EditFile(stored.owner, chosen)

    EditFile.change(arguments.output, copied)
    console().print(f"{counted(len(chosen), 'edit')} written to {arguments.output}")


def _apply(arguments: argparse.Namespace) -> None:
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.editors import answer_to
    from easyedit_dualedit.commands.opened_edits import asked, opened
    from easyedit_dualedit.model.inputs import Query
    from easyedit_dualedit.report.page.wording import counted
    from easyedit_dualedit.report.table import Table, texts

    editor, memory = opened(arguments)
    rows = []
    for prompt in arguments.ask:
        query = Query(prompt, arguments.image)
        before = answer_to(editor.backbone.model, editor.encoder, query)
        rows.append([prompt, before, *asked(editor, memory, query)])
    columns = texts("prompt", "before", "after", "edit")
    console().print(Table(columns, rows, f"{counted(len(memory), 'edit')} applied").for_terminal())


def _requests(arguments: argparse.Namespace) -> "list[Query]":
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.data.records import load_records
    from easyedit_dualedit.model.inputs import Query

    one = (arguments.prompt, arguments.target)
    if arguments.data is not None:
        if any(value is not None for value in one) or arguments.images is None:
            raise ConfigError("--data goes with --images, and without --prompt and --target")
        if arguments.image is not None:
            raise ConfigError("--image goes with --prompt; --data names its own pictures")
        records = load_records(
            arguments.data,
            arguments.images,
            limit=arguments.limit,
            allow_outside=arguments.allow_outside,
        )
        PictureFiles.opened(records, nearest=False)
        return [record.request for record in records]
    if any(value is None for value in one):
        raise ConfigError("give --prompt and --target, or --data and --images")
    if arguments.images is not None or arguments.limit is not None or arguments.allow_outside:
        raise ConfigError("--images, --limit and --allow-outside go with --data; leave them out")
    return [Query(arguments.prompt, arguments.image, arguments.target)]


def _require_ids(stored: "EditFile", ids: list[str], folder: Path) -> None:
    unknown = sorted(set(ids) - {edit.id for edit in stored.edits})
    if unknown:
        raise DataError(f"no edits {unknown} in {folder}; `edits list` shows what there is")
