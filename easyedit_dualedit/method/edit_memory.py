"""The edits of one editor: added and removed one by one or in batches, saved, loaded, merged."""

import hashlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal, keys_of
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edit_file import EditFile, EditsOwner
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.edits_fit import require_fit
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.packing import PRECISIONS, Packed, Precision
from easyedit_dualedit.method.reading import read_some_at_a_time
from easyedit_dualedit.method.stored_edit import (
    PackedProjection,
    Provenance,
    StoredEdit,
    picture_hashes,
    unanswered,
    without,
)
from easyedit_dualedit.model.inputs import Query

DEFAULT_PRECISION: Precision = "int8"

logger = logging.getLogger(__name__)

_ID_BYTES = 6


class EditMemory:
    """Holds edits and gives the model with all of them applied; the model itself never changes.

    Each query is compared with every edit; the best one at or above the gate's threshold applies,
    the newest of equals. Where none does, the model answers as unedited, bit for bit.

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
        gate: Gate | None = None,
        precision: Precision = DEFAULT_PRECISION,
    ):
        """Hold no edits yet.

        Args:
            editor: reads edits and applies them.
            gate: decides instead of the editor's own.
            precision: in which edits are kept.

        Raises:
            ConfigError: if there is no such precision.
            CalibrationError: if the gate has no threshold.
        """
        Packed.of(torch.zeros(1, 1), precision)
        self._editor = editor
        self._gate = editor.gate if gate is None else gate
        _ = self._gate.threshold
        self.precision: Precision = precision
        self._edits: list[StoredEdit] = []
        self._newest: dict[Any, int] = {}
        """Place of the newest edit of each question, and of each question with its target."""
        self._model: EditedModel | None = None
        self._saved: dict[Path, frozenset[str]] = {}
        """Ids of the edits that a folder held when it was last loaded or saved."""

    def add(self, requests: Query | Sequence[Query]) -> list[str]:
        """Read edits, as many at once as fit into memory, and return their ids.

        An edit of a question that is there already is kept beside the older one and wins; a warning
        says so.

        Raises:
            DataError: if a request has no target, or a picture cannot be read; nothing is added.
        """
        batch = [requests] if isinstance(requests, Query) else list(requests)
        time = datetime.now(UTC).isoformat(timespec="seconds")
        made: list[StoredEdit] = []
        for chosen, signals in read_some_at_a_time(self._editor, batch):
            with torch.no_grad():
                active = ActiveEdits.of(signals, self._editor.adapters, self._gate)
            made += [
                self._stored(place, signal, request, active, time)
                for place, (signal, request) in enumerate(zip(signals, chosen, strict=True))
            ]
        for edit in made:
            older = self._at(edit.provenance.question)
            if older is not None:
                answers = (edit.provenance.target, older.provenance.target)
                said = "both say %r" if len({*answers}) == 1 else "%r, the newer one, wins over %r"
                logger.warning(
                    f"edit %s asks what edit %s asks (%r): {said}",
                    edit.id,
                    older.id,
                    edit.provenance.prompt,
                    *dict.fromkeys(answers),
                )
                self._edits = unanswered(self._edits, {edit.provenance.question})
            # Nothing here depends on how many there are already.
            self._note(edit, len(self._edits))
            self._edits.append(edit)
        self._model = None
        return [edit.id for edit in made]

    def find(self, request: Query, *, any_target: bool = False) -> StoredEdit | None:
        """Return the newest edit that a request asks for, or None if none is held.

        Args:
            request: its question, pictures and target.
            any_target: whether an edit of the same question with another target counts.

        Raises:
            DataError: if a picture cannot be read.
        """
        about = _about(request)
        return self._at(about.question if any_target else _asked(about))

    def check(self, requests: Query | Sequence[Query]) -> list[EditCheck]:
        """Return whether the edits of requests take, with every edit of the memory in force.

        Stored edits keep no pictures, so the requests are given again. Each answer is kept with
        its edit (`provenance.answer`), and `save` writes it.

        Raises:
            DataError: if a request has no target or no edit, or a picture cannot be read.
        """
        batch = [requests] if isinstance(requests, Query) else list(requests)
        places = [self._newest.get(_asked(_about(request)), -1) for request in batch]
        if -1 in places:
            request = batch[places.index(-1)]
            raise DataError(
                f"no edit of {request.prompt!r} -> {request.target!r} is held; add it first"
            )
        checks = self.model.check(batch)
        edits = [*self._edits]
        for place, check in zip(places, checks, strict=True):
            about = replace(edits[place].provenance, answer=check.answer)
            edits[place] = replace(edits[place], provenance=about)
        self._hold(edits)
        return checks

    def remove(self, *ids: str | Sequence[str]) -> None:
        """Forget edits, by their ids or by what `add` has returned.

        Raises:
            DataError: if there is no edit of an id; none is removed then.
        """
        chosen = {each for given in ids for each in ([given] if isinstance(given, str) else given)}
        held = {edit.id for edit in self._edits}
        unknown = sorted(chosen - held)
        if unknown:
            raise DataError(f"no edits {unknown} among the {len(held)} held; list them first")
        self._hold(without(self._edits, chosen))

    def clear(self) -> None:
        """Forget all edits."""
        self._hold([])

    def merge(self, other: "EditMemory") -> None:
        """Add the edits of another memory, those with ids that are held already left out.

        Raises:
            ArchiveError: if they belong to another model, other adapters or another gate.
        """
        self.owner.require(other.owner, "the other memory")
        held = {edit.id for edit in self._edits}
        come = [edit for edit in other if edit.id not in held]
        both = {edit.provenance.question for edit in come}
        both &= {edit.provenance.question for edit in self._edits}
        self._hold(unanswered([*self._edits, *come], both))

    @property
    def model(self) -> EditedModel:
        """The model with the edits of this moment applied; later changes need it asked for anew."""
        if self._model is None:
            active = ActiveEdits.of_stored(self._edits, self._editor.adapters, self._gate)
            self._model = EditedModel(self._editor.encoder, active)
        return self._model

    @property
    def stored_bytes(self) -> int:
        """Bytes of the numbers of all edits."""
        return sum(edit.stored_bytes for edit in self._edits)

    @property
    def owner(self) -> EditsOwner:
        """What the edits belong to: model, adapters, gate and precision."""
        return EditsOwner(
            ModelFingerprint.of(self._editor.backbone),
            _digest_of(self._editor),
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
            ArchiveError: if the folder cannot be written, or holds edits that are damaged.
            LockError: if another process keeps the folder locked.
        """
        folder = Path(folder)
        place = folder.absolute()
        mine = EditFile(self.owner, tuple(self._edits))

        def joined(there: EditFile | None) -> EditFile:
            return mine if there is None else mine.beside(there, self._saved[place], folder)

        held = mine
        if place in self._saved:
            held = EditFile.change(folder, joined)
        else:
            mine.save(folder)
        self._saved[place] = frozenset(edit.id for edit in self._edits)
        return len(held.edits)

    @classmethod
    def load(
        cls,
        editor: DualEditor,
        folder: Path | str,
        *,
        gate: Gate | None = None,
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
        place = Path(folder).absolute()
        if may_be_new and not EditFile.exists(place):
            memory = cls(editor, gate=gate)
            memory._saved[place] = frozenset()
            return memory
        saved = EditFile.load(Path(folder))
        memory = cls(editor, gate=gate, precision=saved.owner.precision)
        memory.owner.require(saved.owner, str(folder))
        require_fit(saved.edits, editor, memory._gate, folder)
        memory._hold(saved.edits)
        memory._saved[place] = frozenset(edit.id for edit in saved.edits)
        return memory

    def __len__(self) -> int:
        """Return the number of edits."""
        return len(self._edits)

    def __iter__(self) -> Iterator[StoredEdit]:
        """Return the edits, oldest first."""
        return iter(self._edits)

    def _hold(self, edits: Sequence[StoredEdit]) -> None:
        self._edits = list(edits)
        self._newest = {}
        for place, edit in enumerate(self._edits):
            self._note(edit, place)
        self._model = None

    def _note(self, edit: StoredEdit, place: int) -> None:
        self._newest[edit.provenance.question] = self._newest[_asked(edit.provenance)] = place

    def _at(self, asked: tuple[Any, ...]) -> StoredEdit | None:
        place = self._newest.get(asked)
        return None if place is None else self._edits[place]

    def _stored(
        self, place: int, signal: EditSignal, request: Query, active: ActiveEdits, time: str
    ) -> StoredEdit:
        row = torch.tensor([place], device=active.keys.device)
        projected = {}
        for modality, projections in active.projected.items():
            one = projections.select(row)
            real = one.mask[0]
            projected[modality] = PackedProjection(
                Packed.of(one.keys[0][:, real].cpu(), self.precision),
                Packed.of(one.values[0][:, real].cpu(), self.precision),
            )
        return StoredEdit(
            secrets.token_hex(_ID_BYTES),
            replace(_about(request), time=time),
            keys_of([signal], self._gate)[0].float().cpu(),
            projected,
            tuple(signal.words.tolist()) if active.adapters.has_words else (),
        )


def _about(request: Query) -> Provenance:
    return Provenance("", request.prompt, request.target or "", picture_hashes(request))


def _asked(about: Provenance) -> tuple[Any, ...]:
    return (*about.question, about.target)


def _digest_of(editor: DualEditor) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(editor.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["DEFAULT_PRECISION", "PRECISIONS", "EditMemory"]
