"""One person's session: their edits, what is asked, and all of it kept on disk."""

import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from easyedit_dualedit.app.attention_map import AttentionMap
from easyedit_dualedit.app.bundle import packed, unpacked
from easyedit_dualedit.app.session_folder import Label, SessionFolder
from easyedit_dualedit.app.shared_editor import Outcome, SharedEditor
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edit_file import EditFile
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.stored_edit import Provenance
from easyedit_dualedit.model.answers import exact_match

LONGEST_NAME = 80

_ID = re.compile(r"[0-9a-f]{1,64}")
"""Ids name files of pictures, so nothing else is taken from a file that somebody else made."""


@dataclass(frozen=True)
class KeptEdit:
    """One edit as the list shows it."""

    id: str
    about: Provenance
    label: Label
    picture: Path | None
    """File with its picture, if one was kept."""

    @property
    def name(self) -> str:
        """What somebody called it, or what it says."""
        return self.label.name or f"{self.about.prompt} → {self.about.target}"

    @property
    def takes(self) -> bool | None:
        """Whether the model answered its question with its target; None if it was not asked."""
        answer = self.label.answer
        return self.about.takes if answer is None else exact_match(answer, self.about.target) == 1


@dataclass(frozen=True)
class Made:
    """An edit that was just made."""

    edit: KeptEdit
    check: EditCheck
    older: Provenance | None = None
    """The edit of the same question that it wins over, if there is one."""


@dataclass(frozen=True)
class Shown:
    """All that came of asking, in the order of `Trial.asked`."""

    outcomes: tuple[tuple[str, Outcome], ...]
    """What each question is for, and what came of it."""
    attention: AttentionMap | str
    """Where the answer to the first one looks, or why that is not known."""


class Session:
    """Edits of one person, switched on and off; nothing of it touches another's.

    Everything that changes it writes it to its folder before it returns, and a session of that
    folder goes on where it was.
    """

    def __init__(self, shared: SharedEditor, folder: Path, first_edits: Path | None = None):
        """Open the session of a folder, or begin one there.

        Args:
            shared: answers.
            folder: of the session.
            first_edits: a folder of edits that a new session begins with.

        Raises:
            DualEditError: if what is there is damaged, or of another model.
        """
        self._shared = shared
        self._folder = SessionFolder(folder)
        self._lock = threading.RLock()
        self._in_force: EditMemory | None = None
        # Of files to take away: the page copies what it offers, so the newest of each is enough.
        self._taken = tempfile.TemporaryDirectory(prefix="easyedit-dualedit-")
        is_new = not EditFile.exists(folder)
        self._memory = EditMemory.load(shared.editor, folder, may_be_new=True)
        self._labels, self.trial = self._folder.read()
        if is_new and first_edits is not None:
            self._memory.merge(EditMemory.load(shared.editor, first_edits))

    @property
    def edits(self) -> list[KeptEdit]:
        """All edits, the newest first."""
        with self._lock:
            return [
                KeptEdit(
                    edit.id, edit.provenance, self._label(edit.id), self._folder.picture_of(edit.id)
                )
                for edit in reversed([*self._memory])
            ]

    def edit(self, identifier: str) -> KeptEdit:
        """Return one edit.

        Raises:
            DataError: if there is none of this id.
        """
        found = [edit for edit in self.edits if edit.id == identifier]
        if not found:
            raise DataError("this edit is gone; it was removed in another window")
        return found[0]

    @property
    def in_force(self) -> EditMemory:
        """The edits that are on."""
        with self._lock:
            off = [edit.id for edit in self._memory if not self._label(edit.id).is_on]
            if not off:
                return self._memory
            if self._in_force is None:
                chosen = EditMemory(self._shared.editor, precision=self._memory.precision)
                chosen.merge(self._memory)
                chosen.remove(*off)
                self._in_force = chosen
            return self._in_force

    def ask(self, trial: Trial) -> Shown:
        """Ask all questions of a trial, without and with the edits that are on; it is kept.

        Raises:
            DataError: if there is no question, or a picture cannot be read.
        """
        asked = trial.asked()
        with self._lock:
            memory = self.in_force
            outcomes = self._shared.outcomes(memory, [query for _, query in asked])
            first = outcomes[0]
            attention = self._shared.attention(memory, first.query, first.after)
            self.trial = trial
            self._write()
        names = [name for name, _ in asked]
        return Shown(tuple(zip(names, outcomes, strict=True)), attention)

    def add(self, trial: Trial) -> Made:
        """Make the edit of a trial, and ask whether it takes.

        Raises:
            DataError: if question or answer are missing, or the picture cannot be read.
        """
        request = trial.request()
        with self._lock, self._shared.turn():
            older = self._memory.find(request, any_target=True)
            (identifier,) = self._memory.add(request)
            self._in_force = None
            self._folder.keep_picture(identifier, trial.picture)
            whole = self.in_force is self._memory
            (check,) = (
                self._memory.check(request) if whole else self.in_force.model.check([request])
            )
            self._labels[identifier] = Label(answer=check.answer)
            self.trial = trial
            self._save()
        return Made(self.edit(identifier), check, None if older is None else older.provenance)

    def switch(self, identifier: str, is_on: bool) -> None:
        """Switch an edit on or off.

        Raises:
            DataError: if there is none of this id.
        """
        self._relabel(identifier, lambda label: replace(label, is_on=is_on))

    def rename(self, identifier: str, name: str) -> None:
        """Call an edit something; an empty name is none.

        Raises:
            DataError: if there is none of this id.
        """
        short = " ".join(name.split())[:LONGEST_NAME]
        self._relabel(identifier, lambda label: replace(label, name=short))

    def remove(self, identifier: str) -> None:
        """Forget an edit.

        Raises:
            DataError: if there is none of this id.
        """
        with self._lock:
            self.edit(identifier)
            self._memory.remove(identifier)
            self._labels.pop(identifier, None)
            self._save()
            self._folder.drop_pictures([identifier])

    def show(self, identifier: str) -> Trial:
        """Return what an edit asked for, as a trial with nothing else to ask.

        Raises:
            DataError: if there is none of this id, or its picture cannot be read.
        """
        edit = self.edit(identifier)
        about = {"prompt": edit.about.prompt, "target": edit.about.target}
        return Trial.of(about, edit.picture, None)

    def saved(self) -> Path:
        """Return a ZIP file with all edits, their names and pictures; `load` takes it.

        It is there until the next one is made, or the session is closed.

        Raises:
            DualEditError: if it cannot be written.
        """
        with self._lock, tempfile.TemporaryDirectory() as scratch:
            place = SessionFolder(Path(scratch))
            self._memory.save(place.path)
            place.write({edit.id: edit.label for edit in self.edits}, Trial())
            for edit in self.edits:
                place.keep_picture(edit.id, edit.picture)
            return packed(place.path, Path(self._taken.name, "edits.zip"))

    def exported(self) -> Path:
        """Return a ZIP file with the edits that are on, without names and pictures.

        What it holds is a folder as `edits`, `chat` and `EditMemory.load` take it.

        Raises:
            DataError: if no edit is on.
        """
        with self._lock, tempfile.TemporaryDirectory() as scratch:
            if not len(self.in_force):
                raise DataError("no edit is on; switch on those to export")
            chosen = EditMemory(self._shared.editor, precision=self._memory.precision)
            chosen.merge(self.in_force)
            chosen.save(scratch)
            return packed(Path(scratch), Path(self._taken.name, "exported-edits.zip"))

    def load(self, file: Path) -> int:
        """Add the edits of a ZIP file that `saved` or `exported` made; return how many are new.

        Raises:
            DualEditError: if it is none, is damaged, or its edits belong to another model.
        """
        scratch = Path(tempfile.mkdtemp())
        try:
            unpacked(file, scratch)
            given, place = EditMemory.load(self._shared.editor, scratch), SessionFolder(scratch)
            labels, _ = place.read()
            if not all(_ID.fullmatch(edit.id) for edit in given):
                raise DataError("edits of this file have ids that Save and Export do not write")
            with self._lock:
                held = {edit.id for edit in self._memory}
                new = [edit.id for edit in given if edit.id not in held]
                for identifier in new:
                    self._folder.keep_picture(identifier, place.picture_of(identifier))
                self._memory.merge(given)
                self._labels |= {each: labels[each] for each in new if each in labels}
                self._save()
            return len(new)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _label(self, identifier: str) -> Label:
        return self._labels.get(identifier, Label())

    def _relabel(self, identifier: str, change: Callable[[Label], Label]) -> None:
        with self._lock:
            self.edit(identifier)
            self._labels[identifier] = change(self._label(identifier))
            self._in_force = None
            self._write()

    def _save(self) -> None:
        self._in_force = None
        self._memory.save(self._folder.path)
        self._write()

    def _write(self) -> None:
        self._folder.write(self._labels, self.trial)
