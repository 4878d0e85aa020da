"""Stored edits on disk: `edits.safetensors` holds their numbers, `edits.json` says what they are.

Nothing is pickled. Numbers of all edits lie end to end in one tensor of each sort.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.files import digest_of
from easyedit_dualedit.method.archive import replace_both
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.packing import PRECISIONS, Packed, Precision
from easyedit_dualedit.method.stored_edit import PackedProjection, Provenance, StoredEdit

EDITS_FILE = "edits.json"
NUMBERS_FILE = "edits.safetensors"
FORMAT = 1

_KEYS = "gate.keys"


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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
                numbers, described = Path(temporary, NUMBERS_FILE), Path(temporary, EDITS_FILE)
                save_file(_numbers(self.edits), numbers, metadata={"method": "DualEdit"})
                values["numbers_sha256"] = digest_of(numbers)
                text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
                described.write_text(text, encoding="utf-8")
                for path in (numbers, described):
                    os.chmod(path, 0o644)
                replace_both(folder, numbers, described, Path(temporary, "old"))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArchiveError(f"cannot save edits in {folder}: {reason}") from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the edits in a folder.

        Raises:
            ArchiveError: if a file is missing, damaged, of another format or no such file at all.
        """
        described, numbers = folder / EDITS_FILE, folder / NUMBERS_FILE
        for path in (described, numbers):
            if not path.is_file():
                raise ArchiveError(f"no stored edits in {folder}: {path.name} is missing")
        try:
            values = json.loads(described.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ArchiveError(
                    f"{described} has format {values['format']!r}, this version reads {FORMAT}"
                )
            fingerprint = ModelFingerprint.from_dict(values["model"])
            if values["precision"] not in PRECISIONS:
                raise ArchiveError(f"{described} has unknown precision {values['precision']!r}")
            owner = EditsOwner(
                fingerprint, str(values["adapters"]), str(values["gate"]), values["precision"]
            )
            told = list(values["edits"])
            expected = str(values["numbers_sha256"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            if isinstance(error, ArchiveError):
                raise
            raise ArchiveError(f"{described} is damaged ({error!r}); take a copy of it") from error
        if digest_of(numbers) != expected:
            raise ArchiveError(
                f"{numbers} is damaged or not the one that {EDITS_FILE} describes (its digest"
                " differs); take copies of both that belong together"
            )
        try:
            tensors = load(numbers.read_bytes())
            edits = _edits(told, tensors)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArchiveError(
                f"{numbers} does not hold the edits that {EDITS_FILE} describes ({error!r})"
            ) from error
        return cls(owner, edits)


def _numbers(edits: Sequence[StoredEdit]) -> dict[str, Tensor]:
    if not edits:
        return {_KEYS: torch.empty(0, 0)}
    tensors = {_KEYS: torch.stack([edit.key for edit in edits]).contiguous()}
    for modality in edits[0].projected:
        for name in ("keys", "values"):
            packed = [getattr(edit.projected[modality], name) for edit in edits]
            values = [one.values.transpose(0, 1) for one in packed]  # [e, h, k]
            tensors[f"{modality}.{name}"] = torch.cat(values).contiguous()
            if packed[0].scale is not None:
                scales = [one.scale.transpose(0, 1) for one in packed]
                tensors[f"{modality}.{name}.scale"] = torch.cat(scales).contiguous()
    return tensors


def _edits(
    told: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> tuple[StoredEdit, ...]:
    keys = tensors[_KEYS]
    if len(keys) != len(told):
        raise ValueError(f"{len(keys)} keys for {len(told)} edits")
    starts: dict[str, int] = {}
    edits = []
    for place, entry in enumerate(told):
        projected: dict[Any, PackedProjection] = {}
        for modality, length in entry["lengths"].items():
            start = starts.get(modality, 0)
            starts[modality] = start + length
            parts = [
                _slice(tensors, f"{modality}.{name}", start, length) for name in ("keys", "values")
            ]
            projected[modality] = PackedProjection(*parts)
        provenance = Provenance(
            str(entry["time"]),
            str(entry["prompt"]),
            str(entry["target"]),
            tuple(map(str, entry["pictures"])),
            None if entry.get("answer") is None else str(entry["answer"]),
        )
        words = tuple(int(word) for word in entry.get("words", ()))
        edits.append(StoredEdit(str(entry["id"]), provenance, keys[place], projected, words))
    return tuple(edits)


def _slice(tensors: Mapping[str, Tensor], name: str, start: int, length: int) -> Packed:
    values = tensors[name][start : start + length]
    if len(values) != length or length < 1:
        raise ValueError(f"{name} ends before position {start + length}")
    scale = tensors.get(f"{name}.scale")
    part = None if scale is None else scale[start : start + length].transpose(0, 1).contiguous()
    return Packed(values.transpose(0, 1).contiguous(), part)
