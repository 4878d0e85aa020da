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

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from easyedit_dualedit.errors import ArchiveError, ConfigError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.model.backbone import Backbone

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "adapters.safetensors"
FORMAT = 1

_SAMPLES = 8
_RELATIVE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ModelFingerprint:
    """Enough of a model to tell it from another, in whatever dtype it is loaded."""

    architecture: Mapping[str, Any]
    weights: tuple[float, ...]
    """A few weights of every decoder layer; empty where they are quantised."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """Return the fingerprint of a model."""
        config: Any = backbone.model.config
        text = config.get_text_config()
        architecture = {
            "model_type": config.model_type,
            "hidden_size": backbone.hidden_size,
            "decoder_layers": len(backbone.layers),
            "vocabulary": int(text.vocab_size),
        }
        samples: list[float] = []
        for layer in backbone.layers:
            matrix = next((p for p in layer.parameters() if p.dim() == 2), None)
            # One byte a weight is FP8: like other quantised weights, not numbers of their own.
            is_plain = matrix is not None and matrix.is_floating_point() and matrix.itemsize > 1
            if matrix is None or not is_plain or matrix.is_meta:
                return cls(architecture, ())
            flat = matrix.detach().flatten()
            index = torch.arange(_SAMPLES) * (len(flat) - 1) // (_SAMPLES - 1)
            samples += flat[index.to(flat.device)].to(torch.bfloat16).float().tolist()
        return cls(architecture, tuple(samples))

    def difference(self, other: "ModelFingerprint") -> str | None:
        """Return what differs between two models in a few words, or None if nothing does."""
        for key, value in self.architecture.items():
            if other.architecture.get(key) != value:
                return f"{key} {other.architecture.get(key)!r} instead of {value!r}"
        if not self.weights or not other.weights:
            return None
        mine, theirs = torch.tensor(self.weights), torch.tensor(other.weights)
        if mine.shape != theirs.shape:
            return "other decoder layers"
        allowed = _RELATIVE_TOLERANCE * torch.maximum(mine.abs(), theirs.abs()) + 1e-6
        return "other weights" if bool(((mine - theirs).abs() > allowed).any()) else None


@dataclass(frozen=True)
class Archive:
    """What a folder of saved adapters holds."""

    config: DualEditConfig
    fingerprint: ModelFingerprint
    tensors: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        """Write the archive; a reader sees the old files or the new ones, never half of one.

        Raises:
            ArchiveError: if the folder cannot be written.
        """
        values = {
            "format": FORMAT,
            "method": "DualEdit",
            "config": self.config.to_dict(),
            "model": {
                "architecture": dict(self.fingerprint.architecture),
                "weights": list(self.fingerprint.weights),
            },
        }
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
            config = DualEditConfig.from_dict(values["config"], source=str(config_file))
            model = values["model"]
            fingerprint = ModelFingerprint(
                dict(model["architecture"]), tuple(float(weight) for weight in model["weights"])
            )
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
        return cls(config, fingerprint, tensors)

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
