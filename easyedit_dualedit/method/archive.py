"""Saved adapters: a folder with `config.json` and `adapters.safetensors`; nothing is pickled."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from easyedit_dualedit.errors import ArchiveError, ConfigError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.model.backbone import Backbone

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "adapters.safetensors"
FORMAT = 1

_TARGETS = "training_targets"
_BEFORE_WORDS = {"word_path": False, "answer_tokens": False}
"""What adapters are that were saved before these settings were there."""


@dataclass(frozen=True)
class Archive:
    """What a folder of saved adapters holds."""

    config: DualEditConfig
    fingerprint: ModelFingerprint
    tensors: Mapping[str, Tensor]
    training_targets: tuple[str, ...] | None = None
    """Targets of the edits that the adapters were trained on, as they are compared with others;
    None if that is not known."""

    def save(self, folder: Path) -> None:
        """Write the archive; a reader sees the old files or the new ones, never half of one.

        Raises:
            ArchiveError: if the folder cannot be written.
        """
        values: dict[str, Any] = {
            "format": FORMAT,
            "method": "DualEdit",
            "config": self.config.to_dict(),
            "model": self.fingerprint.to_dict(),
        }
        if self.training_targets is not None:
            values[_TARGETS] = list(self.training_targets)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
                weights, config = Path(temporary, WEIGHTS_FILE), Path(temporary, CONFIG_FILE)
                tensors = {k: v.detach().cpu().contiguous() for k, v in self.tensors.items()}
                save_file(tensors, weights, metadata={"method": "DualEdit"})
                values["weights_sha256"] = _digest(weights)
                config.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
                replace_both(folder, weights, config, Path(temporary, "old"))
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArchiveError(f"cannot save adapters in {folder}: {reason}") from error

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the archive in a folder.

        Raises:
            ArchiveError: if it is missing, damaged or of another format.
        """
        config_file, weights_file = folder / CONFIG_FILE, folder / WEIGHTS_FILE
        for path in (config_file, weights_file):
            if not path.is_file():
                raise ArchiveError(
                    f"no saved adapters in {folder}: {path.name} is missing; train some, or give"
                    " the folder that training wrote"
                )
        try:
            values = json.loads(config_file.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ArchiveError(
                    f"{config_file} has format {values['format']!r}, this version reads {FORMAT};"
                    " save the adapters again"
                )
            config = archived_config(values["config"], str(config_file))
            fingerprint = ModelFingerprint.from_dict(values["model"])
            targets = targets_in(values)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ArchiveError | ConfigError):
                raise
            raise ArchiveError(f"{config_file} is damaged ({error!r}); save it again") from error
        if values.get("weights_sha256", _digest(weights_file)) != _digest(weights_file):
            raise ArchiveError(
                f"{weights_file} is damaged (its digest is not the one in {CONFIG_FILE}); save it"
                " again"
            )
        try:
            tensors = load_file(weights_file)
        except (SafetensorError, OSError) as error:
            raise ArchiveError(f"{weights_file} is damaged ({error}); save it again") from error
        return cls(config, fingerprint, tensors, targets)

    def require_model(self, backbone: Backbone, source: Path) -> None:
        """Check that the adapters were trained on this model.

        Raises:
            ArchiveError: saying what differs.
        """
        difference = self.fingerprint.difference(ModelFingerprint.of(backbone))
        if difference is not None:
            raise ArchiveError(
                f"the adapters in {source} were trained on another model: this one has"
                f" {difference}; load the model that they belong to, or train new ones"
            )


def targets_in(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the training targets in what describes adapters; None if it does not tell them."""
    targets = values.get(_TARGETS)
    return None if targets is None else tuple(map(str, targets))


def archived_config(values: Mapping[str, Any], source: str) -> DualEditConfig:
    """Return the configuration of saved adapters, those from before a setting was there as well.

    Raises:
        ConfigError: naming what is not allowed.
    """
    return DualEditConfig.from_dict(_BEFORE_WORDS | dict(values), source=source)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_both(folder: Path, first: Path, second: Path, old: Path) -> None:
    """Put two new files in place in a folder, under their own names.

    Args:
        folder: where to.
        first: new file, replaced first; if the second fails, the old one comes back.
        second: new file that tells a reader whether it belongs to the first.
        old: where the old first file is kept meanwhile.

    Raises:
        OSError: if a file cannot be replaced.
    """
    target = folder / first.name
    had_first = target.is_file()
    if had_first:
        shutil.copy2(target, old)
    os.replace(first, target)
    try:
        os.replace(second, folder / second.name)
    except OSError:
        if had_first:
            old.rename(target)
        else:
            target.unlink()
        raise
