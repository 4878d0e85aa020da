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
import torch
from conftest import trained_editor
from PIL import Image, ImageDraw
from tiny_models import CHATML, FAMILIES, LAYERS, TinyModel, _finish, tiny_tokenizer
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

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


def tiny_qwen2_vl(seed: int = 0) -> TinyModel:
    """Return a Qwen2-VL of 4 decoder layers, hidden size 32."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    marks = ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
    tokenizer.add_tokens(marks, special_tokens=True)
    start, image, end, video = tokenizer.convert_tokens_to_ids(marks)
    tokenizer.image_token, tokenizer.video_token = "<|image_pad|>", "<|video_pad|>"
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "type": "default",
                "mrope_section": [1, 1, 2],
                "rope_theta": 1e4,
            },
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        vision_start_token_id=start,
        image_token_id=image,
        vision_end_token_id=end,
        video_token_id=video,
    )
    size = {"shortest_edge": 784, "longest_edge": 3136}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=size),
        chat_template=CHATML.replace("<image>\\n", "".join(marks[:3])),
    )
    model = _finish(Qwen2VLForConditionalGeneration(config), tokenizer)
    return TinyModel("qwen2-vl", model, processor)


def build_workplace(folder: Path, family: str) -> Workplace:
    """Return a new workplace in `folder`."""
    tiny = tiny_qwen2_vl() if family == "qwen2-vl" else FAMILIES[family]()
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
