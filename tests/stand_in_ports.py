"""Models that are called as EasyEdit master's ports of BLIP-2 and MiniGPT-4 are, written anew.

The ports themselves need a clone of EasyEdit's master and transformers below 5, which few places
have where these tests run. What is peculiar about them is here as well: samples instead of token
ids, features of a picture before its text, and caches that are tuples, made anew at each step.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tiny_models import IMAGE_SIZE, LAYERS, PATCH_SIZE, tiny_tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from easyedit_dualedit.model.inputs import IGNORED

_HOME = "easyeditor.trainer.blip2_models.stand_ins"
_WIDTH = 32
_QUERIES = 3


def _with_tuples(output: Any) -> Any:
    cache = output.past_key_values
    if cache is not None:
        output.past_key_values = tuple((layer.keys, layer.values) for layer in cache.layers)
    return output


class _Opt(OPTForCausalLM):
    def forward(self, *arguments: Any, **options: Any) -> Any:
        return _with_tuples(super().forward(*arguments, **options))


class _Llama(LlamaForCausalLM):
    def forward(self, *arguments: Any, **options: Any) -> Any:
        return _with_tuples(super().forward(*arguments, **options))


class _Tower(nn.Module):
    """Query tokens that attend to patches of a picture once."""

    image_size = IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        patches: Tensor = self.patches(image)
        return patches.flatten(2).transpose(1, 2)


class _StandIn(nn.Module):
    """What both have in common."""

    before, after = "", ""
    generate = None  # as the ports' own, it cannot be called

    def __init__(self, language_model: Any, tokenizer: Any):
        super().__init__()
        self.visual_encoder = _Tower()
        self.query_tokens = nn.Parameter(torch.randn(1, _QUERIES, _WIDTH))
        self.projection = nn.Linear(_WIDTH, _WIDTH)
        self._tokenizer = tokenizer
        self._named = {"model": language_model}  # not a module of this name

    def maybe_autocast(self) -> Any:
        return contextlib.nullcontext()

    def forward(self, samples: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Any:
        parts = [samples] if isinstance(samples, Mapping) else samples
        rows = [row for part in parts for row in self._rows(part)]
        length = max(len(labels) for _, labels in rows)
        pad = self._embedded([self._tokenizer.pad_token_id])
        embeddings = [torch.cat([row, *[pad] * (length - len(row))]) for row, _ in rows]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row, _ in rows]
        labels = [row + [IGNORED] * (length - len(row)) for _, row in rows]
        attention_mask = torch.tensor(mask)
        output = self._named["model"](
            inputs_embeds=torch.stack(embeddings), attention_mask=attention_mask, return_dict=True
        )
        output.labels, output.attention_mask = torch.tensor(labels), attention_mask
        return output

    def _rows(self, part: Mapping[str, Any]) -> list[tuple[Tensor, list[int]]]:
        """Return embeddings and labels of each text of a sample."""
        rows = []
        for place, text in enumerate(part["text_input"]):
            ids = self._ids(text)
            lead = []
            if part["image"] is not None:
                lead = [self._embedded(self._ids(self.before))] if self.before else []
                lead += [self._features(part["image"])[place]]
                lead += [self._embedded(self._ids(self.after))] if self.after else []
            row = torch.cat([*lead, self._embedded(ids)])
            silent = len(row) - len(ids) + part["prompts_len"][place]
            rows.append((row, [IGNORED] * silent + ids[part["prompts_len"][place] :]))
        return rows

    def _features(self, image: Tensor) -> Tensor:
        seen = self.visual_encoder(image)
        weights = (self.query_tokens @ seen.transpose(1, 2)).softmax(-1)
        features: Tensor = self.projection(weights @ seen)
        return features

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _embedded(self, ids: list[int]) -> Tensor:
        embedded: Tensor = self._named["model"].get_input_embeddings()(torch.tensor(ids))
        return embedded


class Blip2OPT(_StandIn):
    """Called as the port of BLIP-2 is."""

    def __init__(self, tokenizer: Any, **shape: Any):
        model = _Opt(OPTConfig(ffn_dim=64, word_embed_proj_dim=_WIDTH, **shape))
        super().__init__(model, tokenizer)
        self.opt_model, self.opt_tokenizer = model, tokenizer

    def image_encoding(self, samples: Mapping[str, Any]) -> tuple[Tensor]:
        texts = [self._embedded(self._ids(text)) for text in samples["text_input"]]
        self._tokenizer.padding_side = "right"
        return (torch.cat([self._features(samples["image"]), torch.stack(texts)], dim=1),)


class MiniGPT4(_StandIn):
    """Called as the port of MiniGPT-4 is."""

    before, after = "###Human: <Img>", "</Img> "
    end_sym = ""

    def __init__(self, tokenizer: Any, **shape: Any):
        model = _Llama(LlamaConfig(intermediate_size=64, **shape))
        super().__init__(model, tokenizer)
        self.llama_model, self.llama_tokenizer = model, tokenizer

    def encode_img(self, image: Tensor) -> tuple[Tensor, None]:
        return self._features(image), None


# A port is told by where its class is from.
Blip2OPT.__module__ = MiniGPT4.__module__ = _HOME


def stand_in(name: str) -> Any:
    """Return a stand-in with random weights of 4 decoder layers and 3 query tokens."""
    torch.manual_seed(5)
    tokenizer = tiny_tokenizer()
    built = {"Blip2OPT": Blip2OPT, "MiniGPT4": MiniGPT4}[name](
        tokenizer,
        vocab_size=len(tokenizer),
        hidden_size=_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
    )
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
    return built.eval()
