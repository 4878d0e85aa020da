"""Edits of two holders put together: two memories, or a memory and the folder that it saves to."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from easyedit_dualedit.method.stored_edit import StoredEdit


def joined(edits: Iterable[StoredEdit], *holders: Sequence[StoredEdit]) -> list[StoredEdit]:
    """Return edits, oldest first, with what holders know of how their questions are answered.

    Of two edits of one question the newer applies, so that an answer counts only where its holder
    has the same edits of the question in the same order; elsewhere it is not known any longer.

    Args:
        edits: of all holders; those of one moment stay in their order.
        holders: the edits of each; the first one's answer is preferred.
    """
    ordered = sorted(edits, key=lambda edit: edit.provenance.time)
    questions = _ids_by_question(ordered)
    known: dict[str, str] = {}
    for holder in holders:
        ids = _ids_by_question(holder)
        for edit in holder:
            about = edit.provenance
            if about.answer is not None and ids[about.question] == questions.get(about.question):
                known.setdefault(edit.id, about.answer)
    return [_answered(edit, known.get(edit.id)) for edit in ordered]


def _ids_by_question(edits: Iterable[StoredEdit]) -> dict[tuple[Any, ...], list[str]]:
    found: dict[tuple[Any, ...], list[str]] = {}
    for edit in edits:
        found.setdefault(edit.provenance.question, []).append(edit.id)
    return found


def _answered(edit: StoredEdit, answer: str | None) -> StoredEdit:
    if edit.provenance.answer == answer:
        return edit
    return replace(edit, provenance=replace(edit.provenance, answer=answer))
