"""Saved adapters: a folder with `config.json` and `adapters.safetensors`; nothing is pickled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import ArchiveError
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.storage.described_tensors import DescribedTensors
from easyedit_dualedit.storage.parsing import parsing
from easyedit_dualedit.storage.tensor_check import Expected, problems, told

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "adapters.safetensors"
FORMAT = 1
DESCRIPTION = "description"
"""Key under which a trainer's checkpoint says, as bytes of JSON, what its adapters belong to."""

_FILES = DescribedTensors(
    "adapters",
    "saved",
    CONFIG_FILE,
    WEIGHTS_FILE,
    "weights_sha256",
    digest_length=64,
    missing="; train some, or give the folder that training wrote",
    remedy="save it again",
    may_lack_digest=True,
)
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
        tensors = {name: tensor.detach().cpu() for name, tensor in self.tensors.items()}
        _FILES.write(folder, values, tensors, indent=2)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the archive in a folder, or in a checkpoint of EasyEdit's trainer.

        Raises:
            ArchiveError: if it is missing, damaged or of another format.
        """
        if folder.is_file():
            return cls._of_checkpoint(folder)
        values, tensors = _FILES.read(folder)
        path = folder / CONFIG_FILE
        with parsing(path, "save it again", ArchiveError):
            if values["format"] != FORMAT:
                raise ArchiveError(
                    f"{path} has format {values['format']!r}, this version reads {FORMAT}; save"
                    " the adapters again"
                )
            config = archived_config(values["config"], str(path))
            fingerprint = ModelFingerprint.from_dict(values["model"])
            targets = targets_in(values)
        return cls(config, fingerprint, tensors, targets)

    def fill(self, module: nn.Module, source: Path | str) -> None:
        """Load the tensors into what they were saved from.

        Raises:
            ArchiveError: if they do not fit, or are no numbers.
        """
        fill(module, self.tensors, source)

    @classmethod
    def _of_checkpoint(cls, path: Path) -> Self:
        remedy = "set archive to what training wrote"
        with parsing(path, remedy, ArchiveError, wrong="cannot be read as a checkpoint"):
            # Tensors alone: nothing in the file is run.
            values = torch.load(path, map_location="cpu", weights_only=True)
        weights = values.get("model") if isinstance(values, dict) else None
        if not (
            isinstance(weights, dict)
            and DESCRIPTION in weights
            and all(isinstance(each, Tensor) for each in weights.values())
        ):
            raise ArchiveError(
                f"{path} is no checkpoint of DualEdit: it has no adapters under 'model'; set"
                " archive to one that EasyEdit's trainer wrote with alg: DualEdit"
            )
        with parsing(path, "train again", ArchiveError):
            told = json.loads(bytes(weights[DESCRIPTION].tolist()))
            fingerprint = ModelFingerprint.from_dict(told)
            targets = targets_in(told)
            config = archived_config(told["config"], str(path))
        tensors = {key: value for key, value in weights.items() if key != DESCRIPTION}
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
    """Return the training targets in what describes adapters; None if it does not tell them.

    Raises:
        ValueError: if they are no list.
    """
    targets = values.get(_TARGETS)
    if targets is not None and not isinstance(targets, list):
        raise ValueError(f"{_TARGETS} = {targets!r} is no list")
    return None if targets is None else tuple(map(str, targets))


def archived_config(values: Mapping[str, Any], source: str) -> DualEditConfig:
    """Return the configuration of saved adapters, those from before a setting was there as well.

    Raises:
        ConfigError: naming what is not allowed.
    """
    return DualEditConfig.from_dict(_BEFORE_WORDS | dict(values), source=source)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Load tensors from a file into a module.

    Raises:
        ArchiveError: if they do not fit, or are no numbers.
    """
    wrong = problems(
        tensors,
        # A threshold that is not known yet is NaN.
        {
            name: Expected(tensor.shape, may_be_nan=name.rpartition(".")[2].startswith("threshold"))
            for name, tensor in tensors.items()
        },
    )
    if wrong:
        raise ArchiveError(f"the weights in {source} are damaged: {told(wrong)}; save them again")
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ArchiveError(
            f"the weights in {source} do not fit its configuration: {' '.join(str(error).split())}"
        ) from error
