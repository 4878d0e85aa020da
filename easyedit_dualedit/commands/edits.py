"""The commands `edits` and `chat`: a file of edits that grows, shrinks, is asked and is shared."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from easyedit_dualedit.commands.shared import answer_to, console, editor_of, read_hparams
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.method.edit_file import EDITS_FILE, EditFile
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.pictures import open_image
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

_READ_AT_ONCE = 16
_LEAVE = ("exit", "quit")


def edits(arguments: argparse.Namespace) -> None:
    """Do what `edits add`, `list`, `remove`, `apply` or `export` says."""
    actions: Mapping[str, Callable[[argparse.Namespace], None]] = {
        "add": _add,
        "list": _list,
        "remove": _remove,
        "apply": _apply,
        "export": _export,
    }
    actions[arguments.action](arguments)


def chat(arguments: argparse.Namespace) -> None:
    """Answer questions about a picture with the edits applied, until the input ends."""
    if arguments.image is not None:
        open_image(arguments.image)
    editor, memory = _opened(arguments)
    shown = console()
    shown.print(f"{len(memory)} edits; an empty line, {' or '.join(_LEAVE)} ends it")
    while True:
        shown.print("> ", end="")
        line = sys.stdin.readline()
        prompt = line.strip()
        if not prompt or prompt.lower() in _LEAVE:
            return
        try:
            answer, fired = _asked(editor, memory, Query(prompt, arguments.image))
        except DataError as error:  # another question may do
            shown.print(Text(f"error: {error}"))
            continue
        shown.print(Text(answer))
        shown.print(Text(fired, style="dim"))


def _add(arguments: argparse.Namespace) -> None:
    requests = _requests(arguments)
    _, memory = _opened(arguments, may_be_new=True)
    ids: list[str] = []
    for start in range(0, len(requests), _READ_AT_ONCE):
        ids += memory.add(requests[start : start + _READ_AT_ONCE])
    memory.save(arguments.edits)
    shown = console()
    for identifier, request in zip(ids, requests, strict=True):
        shown.print(Text(f"{identifier}  {request.prompt} -> {request.target}"))
    per_edit = memory.stored_bytes / max(1, len(memory)) / 1000
    shown.print(f"{len(memory)} edits in {arguments.edits}, {per_edit:.1f} kB each")


def _list(arguments: argparse.Namespace) -> None:
    stored = EditFile.load(arguments.edits)
    table = Table(title=f"{len(stored.edits)} edits in {arguments.edits}, oldest first")
    for column in ("id", "made", "prompt", "target", "pictures", "kB"):
        table.add_column(column, justify="right" if column == "kB" else "left")
    for edit in stored.edits:
        found = edit.provenance
        cells = (edit.id, found.time, found.prompt, found.target, " ".join(found.pictures) or "-")
        table.add_row(*map(Text, cells), f"{edit.stored_bytes / 1000:.1f}")
    console().print(table)


def _remove(arguments: argparse.Namespace) -> None:
    stored = EditFile.load(arguments.edits)
    _require_ids(stored, arguments.ids, arguments.edits)
    kept = tuple(edit for edit in stored.edits if edit.id not in arguments.ids)
    EditFile(stored.owner, kept).save(arguments.edits)
    console().print(f"{len(stored.edits) - len(kept)} removed, {len(kept)} left")


def _export(arguments: argparse.Namespace) -> None:
    stored = EditFile.load(arguments.edits)
    _require_ids(stored, arguments.ids, arguments.edits)
    if (arguments.output / EDITS_FILE).exists():
        raise ConfigError(f"{arguments.output} holds edits already; give another folder")
    chosen = tuple(edit for edit in stored.edits if not arguments.ids or edit.id in arguments.ids)
    EditFile(stored.owner, chosen).save(arguments.output)
    console().print(f"{len(chosen)} edits written to {arguments.output}")


def _apply(arguments: argparse.Namespace) -> None:
    editor, memory = _opened(arguments)
    table = Table(title=f"{len(memory)} edits applied")
    for column in ("prompt", "before", "after", "edit"):
        table.add_column(column)
    for prompt in arguments.ask:
        query = Query(prompt, arguments.image)
        before = answer_to(editor.backbone.model, editor.encoder, query)
        answer, fired = _asked(editor, memory, query)
        table.add_row(*map(Text, (prompt, before, answer, fired)))
    console().print(table)


def _requests(arguments: argparse.Namespace) -> list[Query]:
    one = (arguments.prompt, arguments.target)
    if arguments.data is not None:
        if any(value is not None for value in one) or arguments.images is None:
            raise ConfigError("--data goes with --images, and without --prompt and --target")
        records = load_records(arguments.data, arguments.images, limit=arguments.limit)
        return [record.request for record in records]
    if any(value is None for value in one):
        raise ConfigError("give --prompt and --target, or --data and --images")
    return [Query(arguments.prompt, arguments.image, arguments.target)]


def _opened(
    arguments: argparse.Namespace, *, may_be_new: bool = False
) -> tuple[DualEditor, EditMemory]:
    is_new = may_be_new and not (arguments.edits / EDITS_FILE).exists()
    if not is_new:
        EditFile.load(arguments.edits)  # a damaged file is told before a model is loaded
    hparams = read_hparams(arguments, DualEditMultimodalHparams, "DualEdit")
    editor = editor_of(hparams)
    return editor, EditMemory(editor) if is_new else EditMemory.load(editor, arguments.edits)


@torch.no_grad()
def _asked(editor: DualEditor, memory: EditMemory, query: Query) -> tuple[str, str]:
    """Return the edited model's answer, and in words which edit fired."""
    model = memory.model
    answer = answer_to(model, editor.encoder, query)
    if not len(memory):
        return answer, "no edits"
    batch = editor.encoder.encode([replace(query, target=None)])
    routing = model.route(layout=batch.layout, **batch.inputs)
    similarity, place = float(routing.similarity[0]), int(routing.edit_index[0])
    if place < 0:
        return answer, f"no edit fired, the nearest has similarity {similarity:.3f}"
    fired: Any = list(memory)[place]
    about = fired.provenance
    return answer, (
        f"edit {fired.id} fired, similarity {similarity:.3f}: {about.prompt} -> {about.target}"
    )


def _require_ids(stored: EditFile, ids: list[str], folder: Path) -> None:
    unknown = sorted(set(ids) - {edit.id for edit in stored.edits})
    if unknown:
        raise DataError(f"no edits {unknown} in {folder}; `edits list` shows what there is")
