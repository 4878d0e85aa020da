"""Text without a picture, for models whose own processor cannot read it."""

from typing import Any

import torch
from PIL import Image

from easyedit_dualedit.model.families import Family

_BLANK = (32, 32)


def text_alone(processor: Any, family: Family, text: Any, **options: Any) -> dict[str, Any]:
    """Return the model's inputs for texts without pictures.

    PaliGemma's processor refuses them, and BLIP-2's gives no pixels, without which its model
    fails: it sees one blank picture then, which no token of a text stands for.

    Args:
        processor: of the model.
        family: of the model.
        text: one text, or several.
        options: of the tokenizer; `return_tensors="pt"` is needed.
    """
    encoded = dict(processor.tokenizer(text, **options))
    if family.answer_token_type:
        encoded["token_type_ids"] = torch.zeros_like(encoded["input_ids"])
    if family.needs_picture:
        blank = processor.image_processor(Image.new("RGB", _BLANK), return_tensors="pt")
        encoded["pixel_values"] = blank["pixel_values"]
    return encoded
