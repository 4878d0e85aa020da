"""Rows as EasyEdit's evaluator writes them: prompt and answer in one text, tokenised together."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Query, input_device, open_image
from easyedit_dualedit.model.text_alone import text_alone


@dataclass(frozen=True)
class JoinedRow:
    """One row; nothing in it but the labels says where the prompt ends."""

    inputs: dict[str, Tensor]
    labels: Tensor
    """The answer's token ids at the last positions, IGNORED elsewhere, [1, s]."""


def joined_row(encoder: Encoder, query: Query) -> JoinedRow:
    """Return the row of one question with its answer.

    EasyEdit looks for the answer by its length: the last positions, as many as the answer alone has
    tokens. Where answer and prompt merge into one token, this differs from `Encoder.encode`.

    Raises:
        DataError: if the query has no target, or a picture cannot be read.
    """
    if query.target is None:
        raise DataError(f"the query {query.prompt!r} has no target to score; give one")
    text = encoder.prompt_text(query) + query.target
    pictures = [open_image(picture) for picture in query.pictures]
    options: dict[str, Any] = {"text": [text], "return_tensors": "pt", "padding": True}
    family, model = encoder.backbone.family, encoder.backbone.model
    if query.video is not None:
        clip = encoder.clip_of(query)
        encoded = dict(encoder.processor(**clip.arguments, **options))
    elif pictures:
        encoded = dict(encoder.processor(images=pictures, **options))
    elif family.chat_template is None:
        encoded = dict(encoder.processor(**options))
    else:
        # Processors that write no prompts do not read text alone either.
        encoded = text_alone(encoder.processor, family, **options)
    # PaliGemma's processor gives labels of its own, which say nothing about the answer.
    encoded.pop("labels", None)
    dtype = next(value.dtype for value in model.parameters() if value.is_floating_point())
    inputs = {
        name: value.to(
            input_device(encoder.backbone.model), dtype if value.is_floating_point() else None
        )
        for name, value in encoded.items()
    }
    answer = encoder.tokenizer(query.target, add_special_tokens=False)["input_ids"]
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    answer = answer[-labels.shape[1] :]
    if not answer:
        raise DataError(f"target = {query.target!r} tokenises to nothing; give one it can say")
    labels[0, -len(answer) :] = labels.new_tensor(answer)
    return JoinedRow(inputs, labels)
