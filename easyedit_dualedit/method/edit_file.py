"""Stored edits on disk: `edits.safetensors` holds their numbers, `edits.json` says what they are.

Nothing is pickled. Numbers of all edits lie end to end in one tensor of each sort.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor

from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.joined_edits import joined
from easyedit_dualedit.method.packing import PRECISIONS, Packed, Precision
from easyedit_dualedit.method.stored_edit import PackedProjection, Provenance, StoredEdit
from easyedit_dualedit.model.inputs import NO_WORD
from easyedit_dualedit.settings import is_whole
from easyedit_dualedit.storage.described_tensors import DescribedTensors
from easyedit_dualedit.storage.folder_lock import locked
from easyedit_dualedit.storage.parsing import parsing
from easyedit_dualedit.storage.tensor_check import Expected, problems, told

EDITS_FILE = "edits.json"
NUMBERS_FILE = "edits.safetensors"
FORMAT = 1

_FILES = DescribedTensors(
    "edits",
    "stored",
    EDITS_FILE,
    NUMBERS_FILE,
    "numbers_sha256",
    digest_length=16,
    missing="",
    remedy="take copies of both files that belong together",
)
_KEYS = "gate.keys"
_PARTS = ("keys", "values")
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class EditsOwner:
    """What stored edits belong to; they mean nothing to anything else."""

    model: ModelFingerprint
    adapters: str
    """Hash of adapters and gate."""
    gate: str
    """Kind of gate that their keys are for."""
    precision: Precision

    def require(self, other: "EditsOwner", source: str) -> None:
        """Check that edits of another owner may be used here.

        Raises:
            ArchiveError: saying what differs.
        """
        difference = other.model.difference(self.model)
        if difference is not None:
            raise ArchiveError(
                f"the edits in {source} were made on another model: this one has {difference}; load"
                " the model that they belong to"
            )
        for name in ("adapters", "gate", "precision"):
            own, given = getattr(self, name), getattr(other, name)
            if own != given:
                raise ArchiveError(
                    f"the edits in {source} were made with other {name} ({given}, here it is"
                    f" {own}); load what they were made with, or make them again"
                )


@dataclass(frozen=True)
class EditFile:
    """Stored edits and what they belong to."""

    owner: EditsOwner
    edits: tuple[StoredEdit, ...]

    def save(self, folder: Path) -> None:
        """Write both files; a reader sees the old ones or the new ones, never half of one.

        Raises:
            ArchiveError: if the folder cannot be written.
        """
        model = self.owner.model
        values: dict[str, Any] = {
            "format": FORMAT,
            "method": "DualEdit",
            "model": model.to_dict(),
            "adapters": self.owner.adapters,
            "gate": self.owner.gate,
            "precision": self.owner.precision,
            "edits": [
                {
                    "id": edit.id,
                    "words": list(edit.words),
                    **dataclasses.asdict(edit.provenance),
                    "lengths": {
                        modality: int(part.keys.values.shape[1])
                        for modality, part in edit.projected.items()
                    },
                }
                for edit in self.edits
            ],
        }
        _FILES.write(folder, values, _numbers(self.edits), indent=1, ensure_ascii=False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the edits in a folder.

        Raises:
            ArchiveError: if a file is missing, damaged, of another format or no such file at all.
        """
        values, tensors = _FILES.read(folder)
        path = folder / EDITS_FILE
        with parsing(path, "take a copy of it", ArchiveError):
            if values["format"] != FORMAT:
                raise ArchiveError(
                    f"{path} has format {values['format']!r}, this version reads {FORMAT}"
                )
            fingerprint = ModelFingerprint.from_dict(values["model"])
            if values["precision"] not in PRECISIONS:
                raise ArchiveError(f"{path} has unknown precision {values['precision']!r}")
            owner = EditsOwner(
                fingerprint, str(values["adapters"]), str(values["gate"]), values["precision"]
            )
            entries = [_entry(entry) for entry in values["edits"]]
        with parsing(
            folder / NUMBERS_FILE,
            "take copies of both files that belong together",
            ArchiveError,
            wrong=f"does not hold the edits that {EDITS_FILE} describes",
        ):
            _require_numbers(entries, tensors, owner.precision)
            return cls(owner, _edits(entries, tensors))

    def beside(self, there: Self, known: Collection[str], source: Path) -> Self:
        """Return these edits with those that others have added to a folder meanwhile, oldest first.

        Args:
            there: what the folder holds now.
            known: ids of the edits that it held when these were read from it or saved to it: what
                is missing there of them was removed by others, and here by us.
            source: the folder.

        Raises:
            ArchiveError: if what is there belongs to another model, other adapters or another gate.
        """
        self.owner.require(there.owner, str(source))
        own = {edit.id for edit in self.edits}
        held = {edit.id for edit in there.edits}
        kept = [edit for edit in there.edits if edit.id in own or edit.id not in known]
        new = [edit for edit in self.edits if edit.id not in held and edit.id not in known]
        edits = joined([*kept, *new], self.edits, there.edits)
        return type(self)(self.owner, tuple(edits))

    @staticmethod
    def exists(folder: Path) -> bool:
        """Return whether a folder holds stored edits."""
        return (folder / EDITS_FILE).exists()

    @classmethod
    def change(cls, folder: Path, change: Callable[[Self | None], Self]) -> Self:
        """Save what a function makes of the edits in a folder; no other process comes between.

        Args:
            folder: of the edits.
            change: takes the edits that are there, or None, and returns those that are to be there.

        Returns:
            What was saved.

        Raises:
            ArchiveError: if the edits are damaged, or the folder cannot be written.
            LockError: if another process keeps it locked.
        """
        with _held(folder):
            changed = change(cls.load(folder) if cls.exists(folder) else None)
            changed.save(folder)
        return changed


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    try:
        with locked(folder):
            yield
    except OSError as error:
        raise ArchiveError(f"cannot change {folder}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Entry:
    """What `edits.json` says of one edit."""

    id: str
    provenance: Provenance
    lengths: Mapping[Modality, int]
    words: tuple[int, ...]


def _entry(values: Mapping[str, Any]) -> _Entry:
    answer, pictures, words = values.get("answer"), values["pictures"], values.get("words", [])
    lengths = dict(values["lengths"])
    texts = [values[name] for name in ("id", "time", "prompt", "target")]
    texts += [answer] if answer is not None else []
    if not isinstance(pictures, list) or not all(
        isinstance(each, str) for each in [*texts, *pictures]
    ):
        raise ValueError("id, time, prompt, target, answer and pictures of an edit are text")
    if not lengths or not all(
        name in get_args(Modality) and is_whole(length, 1) for name, length in lengths.items()
    ):
        raise ValueError(f"lengths {lengths} of an edit")
    if not isinstance(words, list) or not all(is_whole(word, NO_WORD) for word in words):
        raise ValueError("words of an edit are token ids")
    if words and any(length != len(words) for length in lengths.values()):
        raise ValueError(f"{len(words)} words for an edit of lengths {lengths}")
    about = Provenance(values["time"], values["prompt"], values["target"], tuple(pictures), answer)
    return _Entry(values["id"], about, lengths, tuple(words))


def _require_numbers(
    entries: Sequence[_Entry], tensors: Mapping[str, Tensor], precision: Precision
) -> None:
    """Check that tensors hold as much as entries say, in the dtype that they should have."""
    if not entries:
        return
    if len({entry.id for entry in entries}) != len(entries):
        raise ValueError("two edits have one id")
    expected = {_KEYS: Expected((len(entries), None), (torch.float32,))}
    names = {name for entry in entries for name in entry.lengths}
    for name in names:
        total = sum(entry.lengths.get(name, 0) for entry in entries)
        first = tensors.get(f"{name}.keys")
        shape = (
            total,
            *(first.shape[1:] if first is not None and first.ndim == 3 else (None,) * 2),
        )
        for part in _PARTS:
            expected[f"{name}.{part}"] = Expected(shape, (_DTYPES[precision],))
            if precision == "int8":
                scales = Expected((*shape[:2], 1), (torch.float32,), is_positive=True)
                expected[f"{name}.{part}.scale"] = scales
    wrong = problems(tensors, expected)
    if wrong:
        raise ValueError(told(wrong))
    if any(set(entry.lengths) != names for entry in entries):
        raise ValueError("an edit lacks a modality")


def _numbers(edits: Sequence[StoredEdit]) -> dict[str, Tensor]:
    if not edits:
        return {_KEYS: torch.empty(0, 0)}
    tensors = {_KEYS: torch.stack([edit.key for edit in edits]).contiguous()}
    for modality in edits[0].projected:
        for name in _PARTS:
            packed = [getattr(edit.projected[modality], name) for edit in edits]
            values = [one.values.transpose(0, 1) for one in packed]  # [e, h, k]
            tensors[f"{modality}.{name}"] = torch.cat(values).contiguous()
            if packed[0].scale is not None:
                scales = [one.scale.transpose(0, 1) for one in packed]
                tensors[f"{modality}.{name}.scale"] = torch.cat(scales).contiguous()
    return tensors


def _edits(entries: Sequence[_Entry], tensors: Mapping[str, Tensor]) -> tuple[StoredEdit, ...]:
    starts: dict[str, int] = {}
    edits = []
    for place, entry in enumerate(entries):
        projected: dict[Any, PackedProjection] = {}
        for modality, length in entry.lengths.items():
            start = starts.get(modality, 0)
            starts[modality] = start + length
            parts = [_slice(tensors, f"{modality}.{name}", start, length) for name in _PARTS]
            projected[modality] = PackedProjection(*parts)
        key = tensors[_KEYS][place]
        edits.append(StoredEdit(entry.id, entry.provenance, key, projected, entry.words))
    return tuple(edits)


def _slice(tensors: Mapping[str, Tensor], name: str, start: int, length: int) -> Packed:
    values = tensors[name][start : start + length].transpose(0, 1).contiguous()
    scale = tensors.get(f"{name}.scale")
    if scale is None:
        return Packed(values)
    return Packed(values, scale[start : start + length].transpose(0, 1).contiguous())
