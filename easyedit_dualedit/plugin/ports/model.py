"""Lets DualEdit edit the ports of BLIP-2 and MiniGPT-4 that EasyEdit's master brings itself.

A port is called with a dictionary of texts and an image tensor, tokenises by itself, and shows its
language model embeddings alone. The classes here put token ids in front of it, with a placeholder
at every vision position, so that it reads as an image-text-to-text model of transformers does. The
embeddings are those that the port makes, so the answers are its own to the last bit.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.errors import BackboneError, DataError, PromptEndError, UpstreamError
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED, Batch, Query
from easyedit_dualedit.model.pictures import open_image
from easyedit_dualedit.plugin.requests import queries_of

IMAGE_TOKEN = "<ImageHere>"
"""What stands for the placeholder in text; a prompt may not hold it."""

_HOME = "easyeditor.trainer.blip2_models"
_RAW_TEMPLATE = (
    "{% set content = messages[-1]['content'] %}{% if content is string %}{{ content }}"
    "{% else %}{% for part in content %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}"
)

_PARTS = {
    "edit_inner": ("prompt", "target", "image"),
    "edit_outer": ("rephrase_prompt", "target", "image"),
    "edit_outer_image": ("prompt", "target", "image_rephrase"),
    "loc": ("locality_prompt", "locality_ground_truth", None),
    "loc_image": (
        "multimodal_locality_prompt",
        "multimodal_locality_ground_truth",
        "multimodal_locality_image",
    ),
}
"""Part of a training batch -> keys of prompt, answer and picture in an item of the dataset."""


@dataclass(frozen=True)
class _Kind:
    model_type: str
    language_model: str
    tokenizer: str
    before: str = ""
    after: str = ""


_KINDS: Mapping[str, _Kind] = {
    "Blip2OPT": _Kind("easyedit-blip2-opt", "opt_model", "opt_tokenizer"),
    "MiniGPT4": _Kind(
        "easyedit-minigpt4", "llama_model", "llama_tokenizer", "###Human: <Img>", "</Img> "
    ),
}


def is_port(model: Any) -> bool:
    """Return True for EasyEdit's own BLIP-2 and MiniGPT-4; imports nothing."""
    return _kind_of(model) is not None


@dataclass(frozen=True)
class PortConfig:
    """What a port would say in a configuration of transformers."""

    model_type: str
    image_token_id: int
    """An id that no text has: the first one after the vocabulary."""
    text_config: Any
    """Configuration of the language model, with `hidden_size` and `vocab_size`."""

    def get_text_config(self) -> Any:
        """Return the configuration of the language model."""
        return self.text_config


class PortTokenizer:
    """A port's tokenizer, which adds no special tokens and knows the placeholder.

    Every other attribute is the tokenizer's own.
    """

    def __init__(self, tokenizer: Any, image_token_id: int):
        """Wrap the tokenizer; it is not changed."""
        self.tokenizer = tokenizer
        self._image_token_id = image_token_id

    def __call__(self, text: Any, **options: Any) -> Any:
        """Return the tokenizer's encoding of `text`, without special tokens as in the port."""
        return self.tokenizer(text, **{**options, "add_special_tokens": False})

    def convert_ids_to_tokens(self, ids: Any, **options: Any) -> Any:
        """Return the token of an id, or the tokens of several."""
        if isinstance(ids, int):
            if ids == self._image_token_id:
                return IMAGE_TOKEN
            return self.tokenizer.convert_ids_to_tokens(ids, **options)
        return [self.convert_ids_to_tokens(int(index), **options) for index in ids]

    def __getattr__(self, name: str) -> Any:
        """Return the tokenizer's attribute."""
        if name.startswith("__") or name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


class PortModel(nn.Module):
    """A port that is called as image-text-to-text models of transformers are.

    It holds the port and no weights besides: the port's parameters are shared, not copied.
    """

    def __init__(self, port: nn.Module):
        """Wrap a port, which is not changed.

        Raises:
            BackboneError: if the model is no port of EasyEdit's.
        """
        super().__init__()
        kind = _kind_of(port)
        if kind is None:
            raise BackboneError(
                f"{type(port).__name__} is none of EasyEdit's own {' and '.join(_KINDS)}; give the"
                " editor a transformers model as it is"
            )
        self._kind = kind
        self.port = port
        vocabulary = self.get_input_embeddings().num_embeddings
        self.config = PortConfig(kind.model_type, vocabulary, self.language_model.config)
        self.tokenizer = PortTokenizer(getattr(port, kind.tokenizer), vocabulary)

    @property
    def language_model(self) -> Any:
        """The port's causal language model."""
        return getattr(self.port, self._kind.language_model)

    @property
    def device(self) -> torch.device:
        """The device of the language model."""
        return self.get_input_embeddings().weight.device

    def get_decoder(self) -> Any:
        """Return the module that holds the list of decoder layers."""
        inner = self.language_model.model
        return getattr(inner, "decoder", inner)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embeddings of token ids."""
        embeddings: nn.Embedding = self.get_decoder().embed_tokens
        return embeddings

    def picture_ids(self) -> list[int]:
        """Return the token ids that stand before a text about a picture, placeholders among them.

        MiniGPT-4 has words around the picture, BLIP-2 has none.
        """
        before, after = (
            list(self.tokenizer(text)["input_ids"]) if text else []
            for text in (self._kind.before, self._kind.after)
        )
        return [*before, *[self.config.image_token_id] * self._query_tokens, *after]

    def ending(self) -> str:
        """Return what the port puts after every text, often nothing."""
        return str(getattr(self.port, "end_sym", ""))

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Return the projected query tokens of pictures [n, 3, h, w], shape [n, q, d]."""
        port: Any = self.port
        if hasattr(port, "encode_img"):
            features: Tensor = port.encode_img(pixel_values)[0]
            return features
        # BLIP-2 computes them together with the embeddings of a text and has no other way.
        count = len(pixel_values)
        samples = {
            "image": pixel_values,
            "text_input": ["."] * count,
            "labels": [],
            "prompts_len": [],
        }
        side = self.tokenizer.padding_side
        try:
            embeddings: Tensor = port.image_encoding(samples)[0]
        finally:
            self.tokenizer.tokenizer.padding_side = side  # the port leaves its own behind
        return embeddings[:, : self._query_tokens]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> Any:
        """Return the language model's output, with `logits` [b, s, v].

        Args:
            input_ids: token ids with placeholders at vision positions, long [b, s].
            attention_mask: 1 where a token is real, [b, s]; None means everywhere.
            pixel_values: pictures in the order of their rows, [n, 3, h, w]; None without any.
            labels: token ids to predict, -100 elsewhere, [b, s]; for `loss`.
            use_cache: whether the output holds keys and values.

        Raises:
            DataError: if the placeholders do not fit the pictures.
        """
        is_vision = input_ids == self.config.image_token_id
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(is_vision, 0))
        expected = 0 if pixel_values is None else len(pixel_values) * self._query_tokens
        if int(is_vision.sum()) != expected:
            raise DataError(
                f"{int(is_vision.sum())} placeholders of pictures in input_ids, but pixel_values"
                f" need {expected} ({self._query_tokens} a picture); build both with the same"
                " encoder"
            )
        if pixel_values is not None:
            features = self.image_features(pixel_values)
            dtype = torch.promote_types(embeddings.dtype, features.dtype)
            embeddings = embeddings.to(dtype).masked_scatter(
                is_vision[..., None], features.to(dtype)
            )
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        port: Any = self.port
        with port.maybe_autocast():
            return self.language_model(
                inputs_embeds=embeddings,
                attention_mask=mask,
                labels=labels,
                use_cache=use_cache,
                return_dict=True,
            )

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse to generate.

        Raises:
            UpstreamError: always.
        """
        raise _no_generate(self.port)

    @property
    def _query_tokens(self) -> int:
        return int(self.port.query_tokens.shape[1])  # type: ignore[index]


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
        module: Any = importlib.import_module("easyeditor.dataset.processor.blip_processors")
        encoder: Any = self._model.port.visual_encoder
        size = getattr(encoder, "image_size", None) or encoder.input_resolution
        reader = module.BlipImageEvalProcessor(image_size=size, mean=None, std=None)
        pixels: Tensor = reader.transform(open_image(image))
        return pixels


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


class PortEdited:
    """An edited port that is called as the port itself is.

    Everything else is the port's own.
    """

    def __init__(self, edited: EditedModel, samples: PortSamples):
        """Combine the edited model with the reader of samples."""
        self.edited = edited
        self._samples = samples

    @property
    def edits(self) -> tuple[EditSignal | StoredEdit, ...]:
        """The edits applied, oldest first."""
        return self.edited.edits

    def __call__(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Return the edited output for samples: `logits`, `labels` and `attention_mask`."""
        batch = self._samples.read(samples)
        output = self.edited(layout=batch.layout, **batch.inputs)
        output.labels = batch.labels
        output.attention_mask = batch.inputs["attention_mask"]
        return output

    def forward(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        """Return what a call returns; not the port's own, unedited `forward`."""
        return self(samples)

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse to generate.

        Raises:
            UpstreamError: always.
        """
        raise _no_generate(self._samples.model.port)

    def predict_answers(self, *_: Any, **__: Any) -> Any:
        """Refuse to generate.

        Raises:
            UpstreamError: always.
        """
        raise _no_generate(self._samples.model.port)

    def __getattr__(self, name: str) -> Any:
        """Return the port's attribute; methods that return the port return this one."""
        if name.startswith("__") or name in ("edited", "_samples"):
            raise AttributeError(name)
        port = self._samples.model.port
        value = getattr(port, name)
        if not inspect.ismethod(value):
            return value

        @functools.wraps(value)
        def method(*args: Any, **kwargs: Any) -> Any:
            result = value(*args, **kwargs)
            return self if result is port else result

        return method


def read_requests(
    editor: DualEditor, requests: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> list[EditSignal]:
    """Return the edit signals of requests as EasyEdit's editor makes them for a port.

    An image tensor is used as it is; a picture or path is read as EasyEdit's processor reads it.

    Args:
        editor: an editor on a `PortModel`.
        requests: one request or a list of them, each with `prompt`, `target` and `image`.

    Raises:
        DataError: if a request lacks something or holds what cannot be edited.
    """
    reader = PortSamples.of(editor)
    items = [requests] if isinstance(requests, Mapping) else list(requests)
    queries = queries_of([{**item, "image": None} for item in items])
    samples = [
        _sample_of(reader.model, item, query) for item, query in zip(items, queries, strict=True)
    ]
    return editor.read_batch(reader.read(samples), queries)


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
    for name, (prompt_key, answer_key, image_key) in _PARTS.items():
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


def padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return rows of token ids padded on the right, and a mask of what is real; long [b, s]."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = [torch.ones_like(row) for row in ids]
    return (
        pad_sequence(ids, batch_first=True, padding_value=pad),
        pad_sequence(mask, batch_first=True, padding_value=0),
    )


def _kind_of(model: Any) -> _Kind | None:
    for parent in type(model).__mro__:
        if parent.__module__.startswith(_HOME) and parent.__name__ in _KINDS:
            return _KINDS[parent.__name__]
    return None


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


def _no_generate(port: nn.Module) -> UpstreamError:
    return UpstreamError(
        f"{type(port).__name__} of EasyEdit cannot generate: its language model lost `generate` in"
        " transformers 4.50, and EasyEdit's code was written for older ones; call the model with"
        " samples instead, or edit BLIP-2 of transformers (model_name: blip2-opt-2.7b)"
    )
