"""The emoji model and its processor: a small SigLIP tower before SmolLM2, as LLaVA-OneVision."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.errors import PartsError
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.testbed.architecture import CHAT_TEMPLATE, END, IMAGE, PAD, VIDEO
from easyedit_dualedit.testbed.emoji.drawing import GRID, PATCH, SIDE

# transformers' image classes import torchvision, which must be importable before.
define_missing_operators()

import transformers  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

IMAGE_TOKENS = 2 * GRID * GRID + GRID
"""Image tokens of one picture: the whole, its one tile, and a newline for each row of that."""

_PLACE_DEVIATION = 0.7
"""Of the position embeddings that training begins with."""


@dataclass(frozen=True)
class TowerShape:
    """Size of a vision tower.

    Attributes:
        layers: of which the last is the memory of words.
        width: of its states.
        heads: of attention.
        units: of each layer's MLP; at least as many as there are places in names and colors.
    """

    layers: int = 5
    width: int = 256
    heads: int = 4
    units: int = 2304

    def config(self) -> SiglipVisionConfig:
        """Return the configuration of a SigLIP tower of this size."""
        return SiglipVisionConfig(
            hidden_size=self.width,
            intermediate_size=self.units,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            image_size=SIDE,
            patch_size=PATCH,
            vision_use_head=False,
        )


@dataclass(frozen=True)
class LanguageModel:
    """A decoder's configuration and weights, and its tokenizer."""

    config: LlamaConfig
    state: Mapping[str, Tensor]
    tokenizer: Any


def read_language_model(gguf: Path) -> LanguageModel:
    """Return the language model of a GGUF file, with the tokens of pictures added.

    Raises:
        PartsError: the package ``gguf`` is not installed, or this version of transformers reads
            another tokenizer than the model has.
    """
    _require_gguf()
    folder, name = str(gguf.parent), gguf.name
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    settings = model.config.to_dict()
    # A model that was quantised refuses to be saved; these weights no longer are.
    settings.pop("quantization_config", None)
    state = dict(model.state_dict())
    state.pop("lm_head.weight", None)
    has = len(state["model.embed_tokens.weight"])
    if len(tokenizer) != has:
        raise PartsError(
            f"transformers {transformers.__version__} reads {len(tokenizer)} tokens from {name},"
            f" whose model has {has}; put the model together with a newer version, such as 5.24:"
            " older ones read the folder that it writes"
        )
    return with_picture_tokens(LanguageModel(LlamaConfig(**settings), state, tokenizer))


def with_picture_tokens(language: LanguageModel) -> LanguageModel:
    """Return the language model with ``<image>`` and ``<video>`` in its vocabulary."""
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=language.tokenizer.backend_tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE, VIDEO],
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    state = dict(language.state)
    rows = state["model.embed_tokens.weight"]
    missing = len(tokenizer) - len(rows)
    # The mean of all rows, so that no prompt makes the model say one of the new tokens.
    fresh = rows.mean(0, keepdim=True).expand(missing, -1)
    state["model.embed_tokens.weight"] = torch.cat([rows, fresh])
    settings = language.config.to_dict() | {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }
    return LanguageModel(LlamaConfig(**settings), state, tokenizer)


def build_processor(tokenizer: Any) -> LlavaOnevisionProcessor:
    """Return the processor: 96 by 96 pixels, seen as a whole and as one tile."""
    size: Any = {"height": SIDE, "width": SIDE}
    scale: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return LlavaOnevisionProcessor(  # type: ignore[no-untyped-call]
        image_processor=LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[SIDE, SIDE]], **scale
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, **scale),
        num_image_tokens=GRID * GRID,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    language: LanguageModel, tower: TowerShape
) -> LlavaOnevisionForConditionalGeneration:
    """Return the model in float32: the decoder as it came, tower and projector at random."""
    tokenizer = language.tokenizer
    ids: list[Any] = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
    config = LlavaOnevisionConfig(
        vision_config=tower.config(),
        text_config=language.config,
        image_token_index=ids[0],
        video_token_index=ids[1],
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    parts: Any = model
    decoder = parts.model.language_model
    decoder.load_state_dict(
        {name.removeprefix("model."): value for name, value in language.state.items()}
    )
    parts.tie_weights()
    newline = tokenizer("\n", add_special_tokens=False).input_ids[0]
    with torch.no_grad():
        # A row of patches ends as a line of text does.
        parts.model.image_newline.copy_(decoder.embed_tokens.weight[newline])
        # As large as what patches show: at SigLIP's own 0.06 beside 0.9 the layers forgot the
        # place, of which the entry of a patch depends.
        inner = getattr(parts.model.vision_tower, "vision_model", parts.model.vision_tower)
        inner.embeddings.position_embedding.weight.normal_(0.0, _PLACE_DEVIATION)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=40,
    )
    return model


def _require_gguf() -> None:
    import importlib.util

    if importlib.util.find_spec("gguf") is None:
        raise PartsError(
            "the language model is a GGUF file, which transformers reads with the package gguf; "
            "install it with: pip install 'easyedit-dualedit[emoji]'"
        )
