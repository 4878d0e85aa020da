"""A file of edits, opened with the editor that it belongs to, and asked."""

import argparse
from dataclasses import replace
from typing import Any

import torch

from easyedit_dualedit.commands.editors import answer_to, editor_of
from easyedit_dualedit.commands.hparams import read_hparams
from easyedit_dualedit.method.edit_file import EditFile
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.stored_edit import Provenance, picture_hashes
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

_SHOWN = 3


def opened(
    arguments: argparse.Namespace, *, may_be_new: bool = False
) -> tuple[DualEditor, EditMemory]:
    """Return the editor that the arguments name, and the edits in their folder.

    Raises:
        DataError: if there are no edits and `may_be_new` is False, or their file is damaged.
    """
    if not may_be_new or EditFile.exists(arguments.edits):
        EditFile.load(arguments.edits)  # a damaged file is told before a model is loaded
    editor = editor_of(read_hparams(arguments, DualEditMultimodalHparams))
    return editor, EditMemory.load(editor, arguments.edits, may_be_new=may_be_new)


@torch.no_grad()
def asked(editor: DualEditor, memory: EditMemory, query: Query) -> tuple[str, str]:
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
    told = f"edit {fired.id} fired, similarity {similarity:.3f}: {about.prompt} -> {about.target}"
    own = Provenance("", query.prompt, about.target, picture_hashes(query), answer)
    if own.question == about.question:
        about = own  # the edit's own question was asked just now
    if about.takes is False:
        told += f"; the edit does not take: its own question is answered {about.answer!r}"
    return answer, told


def not_taking(memory: EditMemory) -> str:
    """Return in a line which edits are known not to take; empty if there are none."""
    edits = [edit for edit in memory if edit.provenance.takes is False]
    if not edits:
        return ""
    shown = ", ".join(
        f"{edit.id} ({edit.provenance.prompt!r} is answered {edit.provenance.answer!r}, not"
        f" {edit.provenance.target!r})"
        for edit in edits[:_SHOWN]
    )
    more = f" and {len(edits) - _SHOWN} more" if len(edits) > _SHOWN else ""
    return f"{len(edits)} of {len(memory)} edits do not take: {shown}{more}"
