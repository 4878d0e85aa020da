"""What a processor of transformers is to its model, for a port of EasyEdit's."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.plugin.host import find_host
from easyedit_dualedit.plugin.ports.model import PortModel

_RAW_TEMPLATE = (
    "{% set content = messages[-1]['content'] %}{% if content is string %}{{ content }}"
    "{% else %}{% for part in content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
)


class PortProcessor:
    """What a processor of transformers is to its model, for a port.

    The template writes the prompt as it is. Its prompts have no common ending, so the end of one
    is known only where the caller says it.
    """

    def __init__(self, model: PortModel):
        """Encode for a port."""
        self.tokenizer = model.tokenizer
        self.chat_template = _RAW_TEMPLATE
        self._model = model

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Return the last message as the template, or another one given, writes it."""
        options = {"chat_template": self.chat_template, **options}
        return self.tokenizer.apply_chat_template(conversation, **options)

    def __call__(
        self,
        text: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        **_: Any,
    ) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` [b, s], padded right, and `pixel_values`.

        Args:
            text: prompts, one a row.
            images: one picture for each row, in a sequence of its own.

        Raises:
            ValueError: if a row has another number of pictures than one.
        """
        if any(len(group) != 1 for group in images):
            raise ValueError("a port of EasyEdit's reads one picture a row")
        prefix = self._model.picture_ids()
        rows = [prefix + list(self.tokenizer(prompt)["input_ids"]) for prompt in text]
        ids, mask = padded(rows, self.tokenizer.pad_token_id)
        pixels = torch.stack([self.pixels(group[0]) for group in images])
        return {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}

    def pixels(self, image: Image.Image) -> Tensor:
        """Return a picture as EasyEdit's own processor reads it, [3, h, w]."""
        module: Any = find_host().module("dataset.processor.blip_processors")
        encoder: Any = self._model.port.visual_encoder
        size = getattr(encoder, "image_size", None) or encoder.input_resolution
        reader = module.BlipImageEvalProcessor(image_size=size, mean=None, std=None)
        pixels: Tensor = reader.transform(open_image(image))
        return pixels


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return rows of token ids padded on the right, and a mask of what is real; long [b, s]."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=pad),
        pad_sequence(mask, batch_first=True, padding_value=0),
    )
