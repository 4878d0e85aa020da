"""Reads what EasyEdit gives its ports: sample dictionaries, requests, items of its datasets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.errors import BackboneError, DataError, PromptEndError
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Batch, Query, open_image
from easyedit_dualedit.plugin.ports.model import PortModel
from easyedit_dualedit.plugin.ports.processor import PortProcessor, padded
from easyedit_dualedit.plugin.requests import requested_queries
from easyedit_dualedit.plugin.samples import ITEM_KEYS


class PortSamples:
    """Reads sample dictionaries into the token ids that the port itself would see."""

    def __init__(self, model: PortModel, encoder: Encoder):
        """Keep the model, and the encoder that says what each position is."""
        self.model = model
        self.encoder = encoder

    @classmethod
    def of(cls, editor: DualEditor) -> "PortSamples":
        """Return the reader of an editor on a port.

        Raises:
            BackboneError: if the editor's model is no port.
        """
        model = editor.backbone.model
        if not isinstance(model, PortModel):
            raise BackboneError(
                f"the editor's model is a {type(model).__name__}, which does not read sample"
                " dictionaries; build the editor on PortModel(port)"
            )
        return cls(model, editor.encoder)

    def read(
        self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, with_end: bool = False
    ) -> Batch:
        """Return model inputs for sample dictionaries, with their layout and the port's labels.

        Rows are padded on the right, as the port pads them wherever there is a picture.

        Args:
            samples: a sample dictionary, or several, whose rows follow each other.
            with_end: without effect; EasyEdit has no place for an end in the samples of its ports.

        Raises:
            DataError: if `image` and `text_input` do not fit each other.
            PromptEndError: if `prompts_len` does not say where a prompt ends.
        """
        del with_end
        parts = [samples] if isinstance(samples, Mapping) else list(samples)
        rows: list[list[int]] = []
        starts: list[int] = []
        ends: list[int] = []
        pixels: list[Tensor] = []
        for part in parts:
            image = part["image"]
            texts = self._tokens(part["text_input"])
            if image is not None and len(image) != len(texts):
                raise DataError(
                    f"{len(texts)} texts and {len(image)} images in one sample; give an image"
                    " tensor [b, 3, h, w] with one picture a text, or None"
                )
            prefix = [] if image is None else self.model.picture_ids()
            rows += [prefix + text for text in texts]
            starts += [len(prefix)] * len(texts)
            ends += [len(prefix) + length for length in _lengths(part, texts)]
            if image is not None:
                pixels.append(image)
        pad = self.model.tokenizer.pad_token_id
        ids, mask = padded(rows, pad)
        positions = torch.arange(ids.shape[1])
        end = torch.tensor(ends)
        # As in the port, a token that pads is no label, not even one that an answer holds.
        answer = (positions >= end[:, None]) & (ids != pad) & mask.bool()
        device = self.model.device
        ids, mask, answer = ids.to(device), mask.to(device), answer.to(device)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if pixels:
            inputs["pixel_values"] = torch.cat([image.to(device) for image in pixels])
        layout = self.encoder.layout(ids, mask, gate=(end - 1).to(device))
        return Batch(inputs, layout, answer, torch.where(answer, ids, IGNORED))

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        ending = self.model.ending()
        encoded = self.model.tokenizer([text + ending for text in texts], truncation=True)
        return [list(ids) for ids in encoded["input_ids"]]


def read_requests(
    editor: DualEditor, requests: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> tuple[list[Query], Batch]:
    """Return requests as EasyEdit's editor makes them for a port: as queries, and encoded.

    An image tensor is used as it is; a picture or path is read as EasyEdit's processor reads it.
    The queries have no pictures, which are in the batch.

    Args:
        editor: an editor on a `PortModel`.
        requests: one request or a list of them, each with `prompt`, `target` and `image`.

    Raises:
        DataError: if a request lacks something or holds what cannot be edited.
    """
    reader = PortSamples.of(editor)
    items = [requests] if isinstance(requests, Mapping) else list(requests)
    queries = requested_queries([{**item, "image": None} for item in items])
    samples = [
        _sample_of(reader.model, item, query) for item, query in zip(items, queries, strict=True)
    ]
    return queries, reader.read(samples)


def port_samples_of(
    items: Sequence[Mapping[str, Any]], tokenizer: Any
) -> dict[str, dict[str, Any] | None]:
    """Return a training batch of EasyEdit's datasets as samples, under EasyEdit's own names.

    EasyEdit's collation refuses answers of unequal lengths in one batch, and puts "Question: ...
    Short answer:" around the image-locality prompt alone. Here questions are those that its editor
    measures.

    Args:
        items: what `VQADataset` or `CaptionDataset` hold for a port, with pictures as tensors.
        tokenizer: the port's, or the dataset's.
    """
    parts: dict[str, dict[str, Any] | None] = {"cond": None}
    for name, (prompt_key, answer_key, image_key) in ITEM_KEYS.items():
        prompts = [item[prompt_key] for item in items]
        answers = [_spaced(item[answer_key]) for item in items]
        parts[name] = {
            "text_input": [p + a for p, a in zip(prompts, answers, strict=True)],
            "image": torch.stack([item[image_key] for item in items]) if image_key else None,
            "prompts_len": [
                len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts
            ],
            "labels": answers,
        }
    return parts


def _lengths(samples: Mapping[str, Any], texts: Sequence[Sequence[int]]) -> list[int]:
    lengths = [int(length) for length in samples.get("prompts_len") or []]
    if len(lengths) != len(texts) or any(length < 1 for length in lengths):
        raise PromptEndError(
            f"prompts_len = {lengths} for {len(texts)} texts: an edited model needs the number of"
            " tokens of each prompt, at least 1; give one for every text"
        )
    return lengths


def _spaced(answer: str) -> str:
    return answer if answer.startswith(" ") else f" {answer}"


def _sample_of(model: PortModel, request: Mapping[str, Any], query: Query) -> dict[str, Any]:
    return {
        "text_input": [query.prompt + _spaced(query.target or "")],
        "image": _image_of(model, request),
        "prompts_len": [len(model.tokenizer(query.prompt)["input_ids"])],
    }


def _image_of(model: PortModel, request: Mapping[str, Any]) -> Tensor | None:
    image = None if request.get("file_type") == "text" else request.get("image")
    if isinstance(image, list | tuple) and len(image) == 1:
        image = image[0]
    if isinstance(image, Tensor):
        if image.dim() == 3:
            return image[None]
        if image.dim() == 4 and len(image) == 1:
            return image
        raise DataError(
            f"an image tensor of shape {list(image.shape)} cannot be edited; give one picture,"
            " [3, h, w]"
        )
    if image is None:
        return None
    if not isinstance(image, str | Path | Image.Image):
        raise DataError(
            f"an image of type {type(image).__name__} cannot be edited; give one picture: a tensor"
            " [3, h, w], a PIL image or a path"
        )
    picture = Path(image) if isinstance(image, str) else image
    return PortProcessor(model).pixels(open_image(picture))[None]
