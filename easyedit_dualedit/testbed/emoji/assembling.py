"""Puts the emoji model together: the language model from its package, the rest from this one."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from easyedit_dualedit.errors import DataError, PartsError
from easyedit_dualedit.testbed.emoji.architecture import (
    LanguageModel,
    TowerShape,
    build_model,
    build_processor,
    read_language_model,
)
from easyedit_dualedit.testbed.emoji.parts import open_parts
from easyedit_dualedit.testbed.weight_names import fitting, save_halves

FAMILY = "llava-onevision"
"""What the name of a model's folder must hold, for EasyEdit to know its family."""

EYES_FILE = "eyes.safetensors"
CHANGES_FILE = "decoder_changes.safetensors"
SHAPE_FILE = "shape.json"
CARD_FILE = "README.md"

_TOWER, _PROJECTOR = "model.vision_tower.", "model.multi_modal_projector."


def weights_folder() -> Path:
    """Return the folder of what was trained, as it travels with this package."""
    return Path(__file__).parent / "weights"


def assemble(parts_folder: Path, into: Path, weights: Path | None = None) -> None:
    """Write the standard folder of the model, for ``from_pretrained`` and EasyEdit.

    Args:
        parts_folder: of the packages, as :func:`parts.fetch_parts` leaves it.
        into: folder to write; its name must hold "llava-onevision".
        weights: folder of what was trained; that of this package with None.

    Raises:
        PartsError: a package or what was trained is missing or damaged.
        DataError: ``into`` exists, or its name lacks the family.
    """
    weights = weights or weights_folder()
    check_folder(into)
    if not (weights / EYES_FILE).is_file():
        raise PartsError(
            f"{weights} lacks {EYES_FILE}; give a folder that `make` wrote, or install this "
            "package again"
        )
    language = read_language_model(open_parts(parts_folder).gguf())
    model = put_together(language, weights)
    into.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into.parent, prefix=".assembling-") as scratch:
        fresh = Path(scratch) / into.name
        save(model, language.tokenizer, fresh)
        card = weights / CARD_FILE
        if card.is_file():
            shutil.copy(card, fresh / CARD_FILE)
        fresh.rename(into)


def put_together(language: LanguageModel, weights: Path) -> Any:
    """Return the model in float32: the language model with everything that was trained."""
    shape = TowerShape(**json.loads((weights / SHAPE_FILE).read_text(encoding="utf-8")))
    model: Any = build_model(language, shape)
    eyes = {name: value.float() for name, value in load_file(weights / EYES_FILE).items()}
    eyes = fitting(model, eyes)
    _, unexpected = model.load_state_dict(eyes, strict=False)
    if unexpected:
        raise PartsError(
            f"{weights / EYES_FILE} holds {unexpected[0]}, which the model has not; "
            "install this package again"
        )
    changes = weights / CHANGES_FILE
    if changes.is_file():
        merge_changes(model, load_file(changes))
    return model.eval()


@torch.no_grad()
def merge_changes(model: Any, changes: Mapping[str, Tensor]) -> None:
    """Add low-rank changes to the decoder's matrices, in place.

    Args:
        model: the whole model.
        changes: for each changed matrix its name below the decoder with ".down" [r, in] and
            ".up" [out, r]; the change is up @ down.
    """
    decoder = model.model.language_model
    for name, down in changes.items():
        if name.endswith(".down"):
            up = changes[name.removesuffix("down") + "up"]
            weight = decoder.get_submodule(name.removesuffix(".down")).weight
            weight += (up.float() @ down.float()).to(weight.dtype)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and processor; weights in float16, to be loaded in any precision."""
    save_halves(model, folder, but="lm_head.weight")
    build_processor(tokenizer).save_pretrained(folder)


def write_weights(
    folder: Path, model: Any, shape: TowerShape, changes: Mapping[str, Tensor]
) -> None:
    """Write what was trained in half precision: tower, projector and changes of the decoder."""
    folder.mkdir(parents=True, exist_ok=True)
    eyes = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith((_TOWER, _PROJECTOR))
    }
    save_file(eyes, folder / EYES_FILE)
    save_file(
        {name: value.half().contiguous() for name, value in changes.items()},
        folder / CHANGES_FILE,
    )
    (folder / SHAPE_FILE).write_text(json.dumps(asdict(shape)) + "\n", encoding="utf-8")


def check_folder(into: Path) -> None:
    """Refuse a folder that EasyEdit could not use or that would be overwritten.

    Raises:
        DataError: the name lacks "llava-onevision", or the folder exists.
    """
    if FAMILY not in into.name:
        raise DataError(
            f"the folder name {into.name!r} lacks {FAMILY!r}, by which EasyEdit knows the family "
            f"of a model; choose a name such as {FAMILY}-emoji"
        )
    if into.exists():
        raise DataError(f"{into} exists; choose another folder or remove it")
