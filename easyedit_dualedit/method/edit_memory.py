"""The edits of one editor: added and removed one by one or in batches, saved, loaded, merged."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import folder_of
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edit_file import EditFile, EditsOwner
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.edits_fit import require_fit
from easyedit_dualedit.method.fingerprint import ModelFingerprint, adapters_digest
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.joined_edits import joined
from easyedit_dualedit.method.packing import PRECISIONS, Packed, Precision
from easyedit_dualedit.method.reading import listed, read_to_store
from easyedit_dualedit.method.stored_edit import (
    Provenance,
    StoredEdit,
    picture_hashes,
    unanswered,
    without,
)
from easyedit_dualedit.model.inputs import Query

DEFAULT_PRECISION: Precision = "int8"

logger = logging.getLogger(__name__)

_CHANGES = threading.RLock()
"""Held while what a memory holds changes; one for all, so that a memory can be copied."""


class EditMemory:
    """Holds edits and gives the model with all of them applied; the model itself never changes.

    Each query is compared with every edit; the best one at or above the gate's threshold applies,
    the newest of equals. Where none does, the model answers as unedited, bit for bit. Threads may
    share a memory.

        >>> memory = EditMemory(editor)
        >>> kite, who = memory.add(
        ...     [Query("What is this?", image, "a kite"), Query("Who made it?", image, "a child")]
        ... )
        >>> answer = memory.model.generate(**inputs, max_new_tokens=3)
        >>> memory.remove(who)
        >>> [edit.provenance.target for edit in memory]
        ['a kite']
    """

    def __init__(
        self,
        editor: DualEditor,
        *,
        gate: Gate | GateConfig | None = None,
        precision: Precision = DEFAULT_PRECISION,
    ):
        """Hold no edits yet.

        Args:
            editor: reads edits and applies them.
            gate: decides instead of the editor's own.
            precision: in which edits are kept.

        Raises:
            ConfigError: if there is no such precision, or `gate` describes none.
            CalibrationError: if the gate has no threshold.
        """
        if not isinstance(editor, DualEditor):
            raise ConfigError(f"a memory needs a DualEditor, and {editor!r:.60} is none")
        Packed.of(torch.zeros(1, 1), precision)
        self._editor = editor
        self._gate = editor.gate.with_config(gate)
        _ = self._gate.threshold
        self.precision: Precision = precision
        self._edits: list[StoredEdit] = []
        """Oldest first. A change makes another list, so that whoever has this one may go on."""
        self._newest: dict[Any, StoredEdit] = {}
        """The newest edit of each question, and of each question with its target."""
        self._owner: EditsOwner | None = None
        """What the edits belonged to when the first of them was made."""
        self._model: tuple[list[StoredEdit], EditedModel] | None = None
        """The model, and the edits that it has."""
        self._saved: dict[Path, frozenset[str]] = {}
        """Ids of the edits that a folder held when it was last loaded or saved."""

    def add(self, requests: Query | Sequence[Query]) -> list[str]:
        """Read edits, as many at once as fit into memory, and return their ids.

        An edit of a question that is there already is kept beside the older one and wins; a warning
        says so.

        Raises:
            DataError: if a request has no target, a picture cannot be read, or the model's
                activations are not finite; nothing is added.
        """
        batch = listed(requests)
        owner = self._owner or self.owner
        made = read_to_store(self._editor, batch, self._gate, self.precision)
        with _CHANGES:
            self._owner = self._owner or owner
            edits, newest = self._edits[:], dict(self._newest)
            for edit in made:
                older = newest.get(edit.provenance.question)
                if older is not None:
                    _warn_of_two(edit, older)
                    edits = unanswered(edits, {edit.provenance.question})
                edits.append(edit)
                about = edit.provenance
                newest[about.question] = newest[_asked(about)] = edit
            self._edits, self._newest = edits, newest
        return [edit.id for edit in made]

    def find(self, request: Query, *, any_target: bool = False) -> StoredEdit | None:
        """Return the newest edit that a request asks for, or None if none is held.

        Args:
            request: its question, pictures and target.
            any_target: whether an edit of the same question with another target counts.

        Raises:
            DataError: if a picture cannot be read.
        """
        about = _about(listed(request)[0])
        return self._newest.get(about.question if any_target else _asked(about))

    def check(self, requests: Query | Sequence[Query]) -> list[EditCheck]:
        """Return whether the edits of requests take, with every edit of the memory in force.

        Stored edits keep no pictures, so the requests are given again. Each answer is kept with
        its edit (`provenance.answer`), and `save` writes it.

        Raises:
            DataError: if a request has no target or no edit, or a picture cannot be read.
        """
        batch = listed(requests)
        asked: list[str] = []
        for request in batch:
            edit = self.find(request)
            if edit is None:
                raise DataError(
                    f"no edit of {request.prompt!r} -> {request.target!r} is held; add it first"
                )
            asked.append(edit.id)
        checks = self.model.check(batch)
        answers = {id_: check.answer for id_, check in zip(asked, checks, strict=True)}
        with _CHANGES:  # others may have added or removed edits meanwhile
            self._hold(
                [
                    replace(edit, provenance=replace(edit.provenance, answer=answers[edit.id]))
                    if edit.id in answers
                    else edit
                    for edit in self._edits
                ]
            )
        return checks

    def remove(self, *ids: str | StoredEdit | Sequence[str | StoredEdit]) -> None:
        """Forget edits, given themselves, by their ids or by what `add` has returned.

        Raises:
            DataError: if there is no edit of an id; none is removed then.
        """
        given = [
            [each] if isinstance(each, str) or not isinstance(each, Iterable) else each
            for each in ids
        ]
        chosen = {_id_of(each) for several in given for each in several}
        with _CHANGES:
            held = {edit.id for edit in self._edits}
            if not chosen <= held:
                told = ", ".join(sorted(map(repr, chosen - held)))
                raise DataError(f"no edits {told} among the {len(held)} held; list them first")
            self._hold(without(self._edits, chosen))

    def clear(self) -> None:
        """Forget all edits."""
        with _CHANGES:
            self._hold([])

    def merge(self, other: "EditMemory") -> None:
        """Add the edits of another memory, those with ids that are held already left out.

        Of two edits of one question the newer wins, whichever memory it comes from.

        Raises:
            ArchiveError: if they belong to another model, other adapters or another gate.
        """
        if not isinstance(other, EditMemory):
            raise ConfigError(f"{other!r:.80} is no EditMemory; EditMemory.load reads a folder")
        owner = self._owner or self.owner
        owner.require(other._owner or other.owner, "the other memory")
        with _CHANGES:
            self._owner = self._owner or owner
            held = {edit.id for edit in self._edits}
            come = [edit for edit in other if edit.id not in held]
            for edit in come:
                mine = self._newest.get(edit.provenance.question)
                if mine is not None:
                    _warn_of_two(*joined([mine, edit])[::-1])
            self._hold(joined([*self._edits, *come], self._edits, other._edits))

    @property
    def model(self) -> EditedModel:
        """The model with the edits of this moment applied; later changes need it asked for anew."""
        edits, made = self._edits, self._model
        if made is None or made[0] is not edits:
            active = ActiveEdits.of_stored(edits, self._editor.adapters, self._gate)
            self._model = made = edits, EditedModel(self._editor.encoder, active)
        return made[1]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the numbers of all edits."""
        return sum(edit.stored_bytes for edit in self._edits)

    @property
    def owner(self) -> EditsOwner:
        """What edits that are made now belong to: model, adapters, gate and precision."""
        return EditsOwner(
            ModelFingerprint.of(self._editor.backbone),
            adapters_digest(self._editor, self._gate),
            self._gate.kind,
            self.precision,
        )

    def save(self, folder: Path | str) -> int:
        """Write the edits to `edits.safetensors` and `edits.json` in a folder, both or neither.

        Returns how many edits the folder holds then.

        Edits that another process has added to the folder since this memory was loaded from it, or
        saved to it, stay there, and those that it has removed stay removed; edits in a folder that
        this memory knows nothing of are replaced.

        Raises:
            ArchiveError: if the folder cannot be written or holds edits that are damaged, or model
                or adapters have changed since the edits were made.
            LockError: if another process keeps the folder locked.
        """
        folder = folder_of(folder)
        place = folder.resolve()
        mine = EditFile(self.owner, tuple(self._edits))
        if self._owner is not None:
            mine.owner.require(self._owner, "this memory")

        def joined(there: EditFile | None) -> EditFile:
            return mine if there is None else mine.beside(there, self._saved[place], folder)

        held = mine
        if place in self._saved:
            held = EditFile.change(folder, joined)
        else:
            mine.save(folder)
        self._saved[place] = frozenset(edit.id for edit in mine.edits)
        return len(held.edits)

    @classmethod
    def load(
        cls,
        editor: DualEditor,
        folder: Path | str,
        *,
        gate: Gate | GateConfig | None = None,
        may_be_new: bool = False,
    ) -> "EditMemory":
        """Return the memory saved in a folder.

        Args:
            editor: with the adapters that the edits were made with, on the same model.
            folder: written by `save`.
            gate: of the kind that the edits were made with, if it is not the editor's own.
            may_be_new: return a memory without edits where there are none yet; what others save
                there meanwhile stays when it is saved.

        Raises:
            ArchiveError: if the files are missing or damaged, or belong to another model, other
                adapters or another gate.
        """
        place = Path(folder).resolve()
        if may_be_new and not EditFile.exists(place):
            memory = cls(editor, gate=gate)
            memory._saved[place] = frozenset()
            return memory
        saved = EditFile.load(Path(folder))
        memory = cls(editor, gate=gate, precision=saved.owner.precision)
        memory.owner.require(saved.owner, str(folder))
        require_fit(saved.edits, editor, memory._gate, folder)
        memory._hold(saved.edits)
        memory._owner = saved.owner
        memory._saved[place] = frozenset(edit.id for edit in saved.edits)
        return memory

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self._edits)

    def __contains__(self, edit: object) -> bool:
        """Return whether an edit is held, given itself or its id."""
        id_ = edit.id if isinstance(edit, StoredEdit) else edit
        return any(held.id == id_ for held in self._edits)

    def __iter__(self) -> Iterator[StoredEdit]:
        """Return the edits, oldest first."""
        return iter(self._edits)

    def _hold(self, edits: Sequence[StoredEdit]) -> None:
        abouts = [(edit, edit.provenance) for edit in edits]
        newest = {about.question: edit for edit, about in abouts}
        self._newest = newest | {_asked(about): edit for edit, about in abouts}
        self._edits = list(edits)
        if not edits:
            self._owner = None


def _warn_of_two(edit: StoredEdit, older: StoredEdit) -> None:
    answers = (edit.provenance.target, older.provenance.target)
    said = "both say %r" if len({*answers}) == 1 else "%r, the newer one, wins over %r"
    logger.warning(
        f"edit %s asks what edit %s asks (%r): {said}",
        edit.id,
        older.id,
        edit.provenance.prompt,
        *dict.fromkeys(answers),
    )


def _id_of(edit: str | StoredEdit) -> str:
    return edit.id if isinstance(edit, StoredEdit) else edit


def _about(request: Query) -> Provenance:
    return Provenance("", request.prompt, request.target or "", picture_hashes(request))


def _asked(about: Provenance) -> tuple[Any, ...]:
    return (*about.question, about.target)


__all__ = ["DEFAULT_PRECISION", "PRECISIONS", "EditMemory"]
