"""The function that EasyEdit's editor calls to make an edit."""

import copy as copying
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE
from easyedit_dualedit.method.config import gate_from
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Batch
from easyedit_dualedit.plugin.archives import TrainedAdapters
from easyedit_dualedit.plugin.edit_warnings import warn_of_edits, warn_of_port_edits
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.legacy import LegacyEdited, LegacyModel, picture_of
from easyedit_dualedit.plugin.ports.edited import PortEdited
from easyedit_dualedit.plugin.ports.model import PortModel, is_port
from easyedit_dualedit.plugin.ports.processor import PortProcessor
from easyedit_dualedit.plugin.ports.samples import PortSamples, read_requests
from easyedit_dualedit.plugin.requests import requested_queries

logger = logging.getLogger(__name__)

_SESSION = "_dualedit_session"

_EDITORS = 8
"""Editors kept for one model: more than the archives and gates that one comparison tries."""


@dataclass
class _Kept:
    """An editor, with the edits of its running sequence."""

    editor: DualEditor
    written: tuple[int, ...]
    """When the files that it was read from were written."""
    edits: list[EditSignal] = field(default_factory=list)
    told: bool = False
    """Whether a warning has said that the files are others by now."""


class Session:
    """The editors of one model and the edits of their running sequences.

    It lives as an attribute of the model, and so exactly as long as the model does. Copies and
    pickles of the model get an empty one.
    """

    def __init__(self) -> None:
        """Start without editors and without edits."""
        self._editors: dict[tuple[object, ...], _Kept] = {}
        self._port_model: PortModel | None = None

    def __reduce__(self) -> tuple[type["Session"], tuple[()]]:
        """Return how to copy or pickle: as a new session."""
        return Session, ()

    @classmethod
    def of(cls, model: nn.Module) -> "Session":
        """Return the session of a model, a new one the first time."""
        attributes = vars(model)
        session = attributes.get(_SESSION)
        if not isinstance(session, cls):
            session = attributes[_SESSION] = cls()
        return session

    def port_model(self, port: nn.Module) -> PortModel:
        """Return the one model that reads token ids for EasyEdit's own port."""
        if self._port_model is None:
            self._port_model = PortModel(port)
        return self._port_model

    def editor(
        self,
        model: nn.Module,
        processor: Any,
        hparams: DualEditMultimodalHparams,
        *,
        joined: bool,
    ) -> DualEditor:
        """Return the model's editor for an archive and settings, read anew if they are new.

        While a sequence of its edits runs, an editor stays as it was read: its edits are states
        that no other adapters read.

        Args:
            model: the model.
            processor: its processor.
            hparams: name the archive, and the settings.
            joined: see `archives.with_answers_joined`.

        Raises:
            ArchiveError: if the archive is missing, damaged or of another model.
            CalibrationError: if its gate has no threshold.
        """
        key, written = _key_of(hparams), _written(hparams.archive)
        kept = self._editors.get(key)
        if kept is not None and kept.written != written:
            if not kept.edits:
                kept = None
            elif not kept.told:
                kept.told = True
                logger.warning(
                    "archive = %r is no longer what it was; the running sequence of %d edits goes"
                    " on with the adapters that it began with, the next one reads the new ones",
                    hparams.archive,
                    len(kept.edits),
                )
        if kept is None:
            editor = TrainedAdapters.read(hparams.archive).editor(
                model, processor, hparams, joined=joined
            )
            _ = editor.gate.threshold  # raises now rather than at the first question
            self._editors.pop(key, None)
            while len(self._editors) >= _EDITORS:
                self._drop_one()
            kept = self._editors[key] = _Kept(editor, written)
        return kept.editor

    def sequence(self, editor: DualEditor) -> list[EditSignal]:
        """Return the edits of an editor's running sequence, to be added to.

        Each editor has its own, since edits are states that its adapters read.
        """
        (edits,) = [kept.edits for kept in self._editors.values() if kept.editor is editor]
        aside = sum(len(kept.edits) for kept in self._editors.values())
        if aside and not edits:
            logger.warning(
                "the running sequence of %d edits was made with other hyperparameters (archive,"
                " gate or another setting of the method); this edit begins one of its own. Go on"
                " with those hyperparameters to have both",
                aside,
            )
        return edits

    def end_sequences(self) -> None:
        """Forget the edits of all running sequences."""
        for kept in self._editors.values():
            kept.edits = []

    @contextmanager
    def new_sequence(self, *, goes_on: bool) -> Iterator[None]:
        """Let the edits made within be a sequence of their own, or go on with the running one.

        If something is raised, the running sequences are what they were before.
        """
        editors = dict(self._editors)
        before = [(kept, kept.edits, list(kept.edits)) for kept in editors.values()]
        if not goes_on:
            self.end_sequences()
        try:
            yield
        except BaseException:
            self._editors = editors
            for kept, edits, held in before:
                edits[:] = held
                kept.edits = edits
            raise

    def _drop_one(self) -> None:
        """Drop the oldest editor without a running sequence, or else the oldest."""
        idle = [key for key, kept in self._editors.items() if not kept.edits]
        del self._editors[(idle or list(self._editors))[0]]


class UndoLast(dict[str, Any]):
    """What an edit of a sequence gives to restore: no weights, and a call that forgets the edit.

    EasyEdit restores nothing in a sequence; whoever wants to calls this, and the model of the next
    edit is as if the last one had not been made.
    """

    def __init__(self, sequence: list[EditSignal], edits: Sequence[EditSignal]):
        """Keep which edits of a sequence to forget."""
        super().__init__()
        self._sequence = sequence
        self._edits = list(edits)

    def __call__(self) -> None:
        """Forget the edits; a second call does nothing."""
        mine = {id(edit) for edit in self._edits}
        self._sequence[:] = [edit for edit in self._sequence if id(edit) not in mine]


def apply_dualedit_to_multimodal_model(
    model: nn.Module,
    tok: Any,
    requests: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    hparams: DualEditMultimodalHparams,
    copy: bool = False,
    return_orig_weights: bool = False,  # noqa: ARG001  (EasyEdit's signature)
    keep_original_weight: bool = False,  # noqa: ARG001
    **_: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return the model with edits applied, and no weights to restore.

    A warning tells of each edit that does not take, unless the hyperparameters say
    `check_edits: false`.

    For an edit of a sequence, the empty mapping is an `UndoLast`.

    The model that is given stays unedited: EasyEdit measures it after the edit as "before".

    Args:
        model: the model to edit.
        tok: its processor; one of EasyEdit's own ports uses its own tokenizer instead.
        requests: a list of requests is one batch of edits, on their own. A single request that is
            no list is EasyEdit's sign for a sequence: it is added to those before it.
        hparams: names the trained adapters.
        copy: edit a copy of the model.

    Raises:
        ArchiveError: if the adapters are missing, damaged or of another model.
        CalibrationError: if their gate has no threshold.
        DataError: if a request cannot be edited.
    """
    if copy:
        model = copying.deepcopy(model)
    base, processor = model, tok
    if isinstance(model, LegacyModel):
        base, processor = model.base, model.processor
    session = Session.of(base)
    if is_port(base):
        base = session.port_model(base)
        processor = PortProcessor(base)
    # EasyEdit's own ports put a space before every answer themselves.
    joined = not isinstance(base, PortModel)
    editor = session.editor(base, processor, hparams, joined=joined)
    batch: Batch | None = None
    if isinstance(base, PortModel):
        queries, batch = read_requests(editor, requests)
        edits = editor.read_batch(batch, queries)
    else:
        to_picture = picture_of if isinstance(model, LegacyModel) else None
        queries = requested_queries(requests, to_picture)
        edits = editor.read(queries)
    undo: dict[str, Any] = {}
    if isinstance(requests, Mapping):
        sequence = session.sequence(editor)
        sequence += edits
        undo = UndoLast(sequence, edits)
        edits = list(sequence)
    with torch.no_grad():
        edited = editor.edited(edits)
    if hparams.check_edits:
        if batch is None:
            warn_of_edits(edited, queries)
        else:
            warn_of_port_edits(edited, editor, queries, batch)
    if isinstance(base, PortModel):
        return PortEdited(edited, PortSamples.of(editor)), undo
    return (LegacyEdited(model, edited) if isinstance(model, LegacyModel) else edited), undo


def end_sequence(model: nn.Module) -> None:
    """Forget the edits of the model's running sequence, so that the next one starts afresh."""
    base = model.base if isinstance(model, LegacyModel) else model
    Session.of(base).end_sequences()


@contextmanager
def sequence_of_call(model: nn.Module, *, goes_on: bool) -> Iterator[None]:
    """Let the edits of a model that are made within be one sequence.

    Args:
        model: as EasyEdit's editor holds it.
        goes_on: add to the running sequence instead of starting afresh.
    """
    base = model.base if isinstance(model, LegacyModel) else model
    with Session.of(base).new_sequence(goes_on=goes_on):
        yield


def _key_of(hparams: DualEditMultimodalHparams) -> tuple[object, ...]:
    gate = None if hparams.gate is None else gate_from(hparams.gate)
    settings = {**hparams.explicit(), "gate": gate}
    layers = (hparams.text_layer, hparams.vision_layer)
    return hparams.archive, layers, repr(sorted(settings.items()))


def _written(archive: str | None) -> tuple[int, ...]:
    if archive is None or not Path(archive).exists():
        return ()
    path = Path(archive)
    files = [path / CONFIG_FILE, path / WEIGHTS_FILE] if path.is_dir() else [path]
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())
