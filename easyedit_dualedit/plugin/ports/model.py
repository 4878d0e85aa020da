"""A port of EasyEdit's that is called as image-text-to-text models of transformers are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, DataError, UpstreamError

IMAGE_TOKEN = "<ImageHere>"
"""What stands for the placeholder in text; a prompt may not hold it."""

_HOME = "easyeditor.trainer.blip2_models"


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

    def get_output_embeddings(self) -> nn.Linear:
        """Return the layer that makes logits of the last states."""
        head: nn.Linear = self.language_model.get_output_embeddings()
        return head

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
        raise no_generate(self.port)

    @property
    def _query_tokens(self) -> int:
        return int(self.port.query_tokens.shape[1])  # type: ignore[index]


def _kind_of(model: Any) -> _Kind | None:
    for parent in type(model).__mro__:
        if parent.__module__.startswith(_HOME) and parent.__name__ in _KINDS:
            return _KINDS[parent.__name__]
    return None


def no_generate(port: nn.Module) -> UpstreamError:
    """Return the error that says that a port cannot generate."""
    return UpstreamError(
        f"{type(port).__name__} of EasyEdit cannot generate: its language model lost `generate` in"
        " transformers 4.50, and EasyEdit's code was written for older ones; call the model with"
        " samples instead, or edit BLIP-2 of transformers (model_name: blip2-opt-2.7b)"
    )
