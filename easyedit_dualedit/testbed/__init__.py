"""A small vision-language model with real knowledge, and MMEdit records about its world.

The model is a LLaVA-OneVision of 1.5 million parameters that answers questions about pictures of
coloured shapes, captions them, and knows facts about countries that do not exist.
"""

from pathlib import Path

from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.records import write_records
from easyedit_dualedit.testbed.world import Scene, SceneObject

__all__ = ["Scene", "SceneObject", "adapters_folder", "model_folder", "render", "write_records"]


def adapters_folder(preset: str) -> Path:
    """Return the folder of the adapters trained for the model under a preset.

    Args:
        preset: "default" or "published".
    """
    return Path(__file__).parent / "adapters" / preset


def model_folder() -> Path:
    """Return the folder of the model and its processor, for ``from_pretrained``."""
    return Path(__file__).parent / "llava-onevision-testbed"
