"""A tiny stand-in for the emoji model's parts: a few things, a decoder of two layers."""

import io
import random
from functools import cache

import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from easyedit_dualedit.testbed.architecture import build_tokenizer
from easyedit_dualedit.testbed.emoji.architecture import (
    LanguageModel,
    TowerShape,
    with_picture_tokens,
)
from easyedit_dualedit.testbed.emoji.drawing import VENDORS, Drawings
from easyedit_dualedit.testbed.emoji.things import Thing

SHAPE = TowerShape(layers=2, width=32, heads=2, units=64)

THINGS = (
    Thing("Chad flag", "flag", "Chad", "chad.png"),
    Thing("cat", "animal", None, "cat.png"),
    Thing("hot dog", "food", None, "hot-dog.png"),
    Thing("tiger", "animal", None, "tiger.png"),
)


@cache
def _tokenizer() -> object:
    return build_tokenizer()


def tiny_language() -> LanguageModel:
    """Return a decoder with random weights and the small testbed's tokenizer."""
    tokenizer = _tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) - 2,  # type: ignore[arg-type]
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    state = dict(LlamaForCausalLM(config).state_dict())
    state.pop("lm_head.weight", None)
    return with_picture_tokens(LanguageModel(config, state, tokenizer))


def tiny_drawings() -> Drawings:
    """Return plain squares, another color for each thing and vendor."""
    source = random.Random(0)
    files = {}
    for vendor in VENDORS:
        for thing in THINGS:
            color = tuple(source.randrange(256) for _ in range(3))
            image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
            image.paste((*color, 255), (4, 4, 60, 60))
            stream = io.BytesIO()
            image.save(stream, "PNG")
            files[vendor, thing.name] = stream.getvalue()
    return Drawings(files)
