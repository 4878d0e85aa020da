"""Names of the vision tower's weights, which transformers has changed since its version 5.5.

Files have the names of published checkpoints: every version reads those. Newer versions write
others, which older ones take for missing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"

_TOWER = "vision_tower."
_PUBLISHED = "vision_tower.vision_model."


def save_halves(model: nn.Module, folder: Path, *, but: str | None = None) -> None:
    """Write a model in float16, to be loaded in any precision, by its published names.

    Args:
        model: of transformers.
        folder: to write to.
        but: a weight to leave out, one that is tied to another.
    """
    whole: Any = model
    halves = {name: value.half() for name, value in model.state_dict().items() if name != but}
    whole.save_pretrained(folder, state_dict=halves)
    publish_names(folder / WEIGHTS_FILE)


def publish_names(file: Path) -> None:
    """Write a file of weights anew if its tower's names are not the published ones."""
    tensors = load_file(file)
    published = {_renamed(name, is_published=True): value for name, value in tensors.items()}
    if published.keys() == tensors.keys():
        return
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(published, file, metadata=metadata)


def fitting(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names that a model has in this version of transformers."""
    is_published = any(_PUBLISHED in name for name in model.state_dict())
    return {_renamed(name, is_published=is_published): value for name, value in tensors.items()}


def _renamed(name: str, *, is_published: bool) -> str:
    plain = name.replace(_PUBLISHED, _TOWER)
    return plain.replace(_TOWER, _PUBLISHED) if is_published else plain
