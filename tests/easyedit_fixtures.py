"""Model folders, pictures, records and hyperparameters for the tests that run EasyEdit."""

import functools
import importlib.util
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tiny_editors import trained_editor
from tiny_families import FAMILIES

HAS_MASTER = bool(os.environ.get("EASYEDIT_HOME"))
HAS_RELEASE = not HAS_MASTER and importlib.util.find_spec("easyeditor") is not None

needs_master = pytest.mark.skipif(
    not HAS_MASTER, reason="EASYEDIT_HOME is not set to a clone of EasyEdit's master"
)
needs_release = pytest.mark.skipif(
    not HAS_RELEASE,
    reason="easyeditor 0.0.1.dev0 is not installed, or EASYEDIT_HOME puts master in its place",
)
needs_easyedit = pytest.mark.skipif(
    not (HAS_MASTER or HAS_RELEASE), reason="no edition of EasyEdit is installed"
)

# Master finds its own code for a family by the name of the model's folder.
FOLDERS = {"llava": "llava-1.5-7b-hf", "llava-onevision": "llava-onevision-tiny"}
"""Families that every test with EasyEdit runs on; the others run on those of all families."""

_COLOURS = ("red", "green", "blue", "yellow")
_ANSWERS = ("blue", "two", "red circle", "a star")


@dataclass(frozen=True)
class Workplace:
    """Everything on disk that an EasyEdit script needs, for one family of models."""

    family: str
    model: Path
    records: Path
    pictures: Path
    adapters: Path
    """A folder written by `DualEditor.save`; its adapters change answers at random."""

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return hyperparameters for an edit on the CPU."""
        return {
            "model_name": str(self.model),
            "device": "cpu",
            "coco_image": str(self.pictures),
            "rephrase_image": str(self.pictures),
            **changes,
        }

    def training_settings(self, results: Path, **changes: Any) -> dict[str, Any]:
        """Return hyperparameters for a short training on the CPU."""
        return self.settings(
            **{
                "text_layer": 1,
                "vision_layer": 2,
                "width": 16,
                "heads": 2,
                "results_dir": str(results),
                "batch_size": 1,
                "max_iters": 6,
                "val_interval": 4,
                "val_steps": 2,
                "log_interval": 2,
                "lr": "1e-2",
                "gate_steps": 20,
                **changes,
            }
        )

    def record(self, index: int = 0) -> dict[str, Any]:
        """Return one record as it is on disk."""
        record: dict[str, Any] = json.loads(self.records.read_text())[index]
        return record

    def edit_arguments(self, indices: tuple[int, ...] = (0,), *, full: bool = False) -> Any:
        """Return what `MultimodalEditor.edit` takes for some records.

        Args:
            indices: which records.
            full: give pictures with their whole path, as master expects.
        """
        root = f"{self.pictures}/" if full else ""
        records = [self.record(index) for index in indices]
        return {
            "prompts": [r["src"] for r in records],
            "targets": [r["alt"] for r in records],
            "image": [root + r["image"] for r in records],
            "rephrase_prompts": [r["rephrase"] for r in records],
            "rephrase_image": [root + r["image_rephrase"] for r in records],
            "locality_inputs": {
                "text": {
                    "prompt": [r["loc"] for r in records],
                    "ground_truth": [r["loc_ans"] for r in records],
                },
                "vision": {
                    "prompt": [r["m_loc_q"] for r in records],
                    "ground_truth": [r["m_loc_a"] for r in records],
                    "image": [root + r["m_loc"] for r in records],
                },
            },
        }


@functools.cache
def shared_workplace(family: str) -> Workplace:
    """Return the workplace of a family that all tests of this process read."""
    return build_workplace(Path(tempfile.mkdtemp(prefix="dualedit-")), family)


def build_workplace(folder: Path, family: str) -> Workplace:
    """Return a new workplace in `folder`."""
    tiny = FAMILIES[family]()
    model = tiny.save(folder / FOLDERS.get(family, f"{family}-tiny"))
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    records = [_record(index, pictures) for index in range(4)]
    (folder / "records.json").write_text(json.dumps(records))
    editor = trained_editor(tiny, gate={"kind": "cosine", "threshold": 0.9999})
    editor.save(folder / "adapters")
    return Workplace(family, model, folder / "records.json", pictures, folder / "adapters")


def _record(index: int, pictures: Path) -> dict[str, Any]:
    names = {}
    for role, colour in (("image", 0), ("image_rephrase", 0), ("m_loc", 2)):
        name = f"{role}_{index}.png"
        # Palettes and odd sizes, as in real data.
        size = (30 + 3 * index, 40 - 2 * index)
        picture = Image.new("RGB", size, "grey")
        box = (4, 4, 18 + index, 20) if role == "image" else (8, 6, 24, 26)
        ImageDraw.Draw(picture).ellipse(box, fill=_COLOURS[(index + colour) % 4])
        (picture.convert("P") if role == "m_loc" else picture).save(pictures / name)
        names[role] = name
    return {
        "src": f"What colour is the circle number {index}?",
        "pred": "red",
        "alt": _ANSWERS[index],
        "rephrase": f"The circle number {index} in the picture is?",
        "loc": "Where is the star?",
        "loc_ans": "top left",
        "m_loc_q": "How many squares are there?",
        "m_loc_a": "three",
        **names,
    }
