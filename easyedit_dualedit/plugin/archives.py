"""Loads trained adapters for an edit inside EasyEdit: our folders, or its trainer's checkpoints."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import ArchiveError, DualEditError
from easyedit_dualedit.method.archive import (
    CONFIG_FILE,
    DESCRIPTION,
    Archive,
    fill,
    targets_in,
)
from easyedit_dualedit.method.config import DualEditConfig, gate_from
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.method.shared_folder import adapters_folder
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.families import BackboneConfig, answers_joined
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.storage.hub import names_repository
from easyedit_dualedit.storage.parsing import json_in


def described_state(editor: DualEditor) -> dict[str, Tensor]:
    """Return an editor's weights with a tensor that says which configuration and model they have.

    All values are tensors, since EasyEdit loads checkpoints with `weights_only=True`.
    """
    model = ModelFingerprint.of(editor.backbone).to_dict()
    values = {"config": editor.config.to_dict(), **model}
    if editor.training_targets is not None:
        values["training_targets"] = list(editor.training_targets)
    text = json.dumps(values)
    description = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return {**editor.state_dict(), DESCRIPTION: description}


@dataclass(frozen=True)
class TrainedAdapters:
    """Adapters as they were saved, with where they came from."""

    archive: Archive
    source: Path

    @classmethod
    def read(cls, source: str | Path | None) -> Self:
        """Return the adapters in a folder, a checkpoint file or a repository of the hub.

        Raises:
            ArchiveError: if there are none, or what is there is damaged.
        """
        path = adapters_folder(require_archive(source))
        return cls(Archive.load(path), path)

    def editor(
        self,
        model: nn.Module,
        processor: Any,
        hparams: DualEditMultimodalHparams,
        *,
        joined: bool = False,
    ) -> DualEditor:
        """Return the editor that these adapters make of a model.

        Args:
            model: the model.
            processor: its processor.
            hparams: what else they say must agree with the adapters, but for the gate.
            joined: see `with_answers_joined`.

        Raises:
            ArchiveError: if they belong to another model, or the hyperparameters ask for another
                method than the one that was trained.
        """
        backbone = Backbone.of(model, self.archive.config.backbone)
        self.archive.require_model(backbone, self.source)
        _require_agreement(self.archive.config, hparams, self.source)
        config = self.archive.config
        if hparams.gate is not None:
            config = dataclasses.replace(config, gate=gate_from(hparams.gate))
        if joined:
            config = with_answers_joined(config, model)
        editor = DualEditor(model, processor, config)
        editor.training_targets = self.archive.training_targets
        load_weights(editor, self.archive.tensors, str(self.source))
        return editor


def require_archive(source: str | Path | None) -> str | Path:
    """Return what an archive names, if it may hold adapters; nothing is read or fetched.

    Raises:
        ArchiveError: if it names none, or nothing is there.
    """
    if source is None:
        raise ArchiveError(
            "archive is not set: DualEdit needs trained adapters; set archive to a folder of"
            " saved adapters or to a checkpoint of EasyEdit's trainer"
        )
    if not names_repository(str(source)) and not Path(source).exists():
        raise ArchiveError(
            f"archive = {str(source)!r}, but there is nothing; train adapters, or set archive"
            " to what training wrote"
        )
    return source


def with_answers_joined(config: DualEditConfig, model: nn.Module) -> DualEditConfig:
    """Return a configuration in which nothing stands between a prompt and its answer."""
    return dataclasses.replace(config, backbone=answers_joined(config.backbone, model.config))


def training_targets_in(source: str | Path) -> tuple[str, ...] | None:
    """Return the targets that saved adapters were trained on; None if they cannot be read.

    Of a folder, no weights are loaded.
    """
    path = Path(source)
    try:
        if path.is_dir():
            return targets_in(json_in(path / CONFIG_FILE, "save it again"))
        return TrainedAdapters.read(path).archive.training_targets
    except (DualEditError, AttributeError, ValueError):
        return None  # whoever needs the adapters themselves says what is wrong with them


def load_weights(editor: DualEditor, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load weights, described or not, into an editor.

    Raises:
        ArchiveError: if they do not fit.
    """
    fill(editor, {key: value for key, value in tensors.items() if key != DESCRIPTION}, source)


def _chosen_by(preset: str) -> dict[str, Any]:
    """Return what a preset chooses otherwise than the default does."""
    usual, own = (
        DualEditConfig.preset(name, text_layer=0, vision_layer=1).to_dict()
        for name in ("default", preset)
    )
    return {name: value for name, value in own.items() if value != usual[name]}


def _require_agreement(
    trained: DualEditConfig, hparams: DualEditMultimodalHparams, source: Path
) -> None:
    asked = {**_chosen_by(hparams.preset), **hparams.explicit()}
    for name in ("text_layer", "vision_layer"):
        if getattr(hparams, name) is not None:
            asked[name] = getattr(hparams, name)
    asked.pop("gate", None)  # another gate may decide for the same adapters
    if "backbone" in asked:
        asked["backbone"] = dataclasses.asdict(BackboneConfig.read(asked["backbone"]))
    have = trained.to_dict()
    differing = [
        f"{name} is {have[name]!r} in the archive and {value!r} in the hyperparameters"
        for name, value in asked.items()
        if have[name] != (list(value) if isinstance(value, tuple) else value)
    ]
    if differing:
        raise ArchiveError(
            f"{source} holds other adapters than the hyperparameters describe:"
            f" {'; '.join(differing)}. Leave these keys out, or train adapters for them"
        )
