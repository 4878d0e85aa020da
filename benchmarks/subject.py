"""The model that is measured: a LLaVA of random weights, in the shapes of the published figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import easyedit_dualedit.testbed as testbed
from easyedit_dualedit.batch import Query
from easyedit_dualedit.config import DualEditConfig
from easyedit_dualedit.editor import DualEditor
from easyedit_dualedit.records import Record
from easyedit_dualedit.torchvision_ops import define_missing_operators

_CHAT = (
    "{% for message in messages %}{{ 'USER: ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] + ' ' }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model and of its adapters."""

    hidden: int = 256
    inner: int = 688
    layers: int = 8
    heads: int = 8
    side: int = 112
    """Pixels; 14 of them a patch."""
    tower_layers: int = 4
    text_layer: int = 4
    vision_layer: int = 5
    width: int = 64

    @property
    def image_tokens(self) -> int:
        """Positions that a picture takes."""
        return (self.side // 14) ** 2


PUBLISHED = Shapes()


def editor_of(shapes: Shapes = PUBLISHED) -> DualEditor:
    """Return an editor on a fresh model, its adapters changing something."""
    define_missing_operators()
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    folder = Path(testbed.__file__).parent / "llava-onevision-testbed"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=shapes.hidden,
            intermediate_size=2 * shapes.hidden,
            num_hidden_layers=shapes.tower_layers,
            num_attention_heads=shapes.heads,
            image_size=shapes.side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shapes.hidden,
            intermediate_size=shapes.inner,
            num_hidden_layers=shapes.layers,
            num_attention_heads=shapes.heads,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=image,
        image_token_index=image,
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": shapes.side},
            crop_size={"height": shapes.side, "width": shapes.side},
        ),
        tokenizer=tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_CHAT,
    )
    model = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    settings = DualEditConfig.preset(
        "default",
        text_layer=shapes.text_layer,
        vision_layer=shapes.vision_layer,
        width=shapes.width,
        heads=8,
        gate={"kind": "cosine", "threshold": -1.0},
    )
    editor = DualEditor(model, processor, settings)
    with torch.no_grad():
        for name, parameter in editor.adapters.named_parameters():
            if "output" in name:
                parameter.normal_(0.0, 0.02)
    return editor


def records_of(count: int) -> list[Record]:
    """Return records, every picture another colour."""
    return [_record(index) for index in range(count)]


def _record(index: int) -> Record:
    def picture(shade: int) -> Image.Image:
        return Image.new("RGB", (112, 112), (40 * index % 256, shade, 9 * index % 256))

    own = picture(10)
    return Record(
        index,
        request=Query("What colour is it?", own, "a red circle"),
        text_rephrase=Query("Which colour is the shape?", own, "a red circle"),
        image_rephrase=Query("What colour is it?", picture(90), "a red circle"),
        text_locality=Query("Where is the star?", None, "at the left"),
        image_locality=Query("How many shapes are there?", picture(170), "three"),
        prediction="blue",
        portability=(),
        template="{}",
        folder=Path("."),
    )
