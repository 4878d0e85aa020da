"""The two small models of a SERAC: those that are named, the model's own, or untrained ones."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.files import write_json
from easyedit_dualedit.measure.contender import Bench
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.plugin.rows.counterfactual import own_language_model, same_tokens
from easyedit_dualedit.plugin.rows.training import resolved

_LONGEST_TEXT = 512
_WIDTH, _HEAD = 768, 64
_SAVED_FILE = "saved.json"
OWN = "own"
"""What `small_name` is where the model's own language model is the counterfactual one."""


def name_small_models(config: Any, encoder: Encoder, bench: Bench) -> None:
    """Fill in folders of small models: the model's own, or untrained ones where none are named.

    Raises:
        ConfigError: if a counterfactual model is named whose vocabulary is not the model's, or
            the model's own where it cannot stand alone.
    """
    folder = bench.folder.resolve() / "easyedit-serac-parts"
    backbone, tokenizer = encoder.backbone, encoder.tokenizer
    model: Any = backbone.model
    tokens = vocabulary_of(model)
    if config.small_name == OWN:
        _save(own_language_model(backbone), tokenizer, folder / OWN)
        config.small_name = str(folder / OWN)
    elif config.small_name:
        own = transformers.AutoConfig.from_pretrained(resolved(str(config.small_name))).vocab_size
        if own != tokens and not same_tokens(resolved(str(config.small_name)), tokenizer):
            raise ConfigError(
                f"small_name = {config.small_name!r} has a vocabulary of {own} tokens and the model"
                f" one of {tokens}: SERAC mixes their probabilities, so their tokens must be the"
                f" same; leave small_name out to have one made, or give {OWN!r}, which is the"
                " model's own language model"
            )
    for setting, made in (("small_name", "opt"), ("cls_name", "distilbert")):
        given = getattr(config, setting)
        setattr(config, setting, resolved(str(given)) if given else str(folder / made))
    width = min(backbone.hidden_size, _WIDTH)
    heads = max(1, width // _HEAD)
    width -= width % heads
    depth = len(backbone.layers)
    longest = int(getattr(model.config.get_text_config(), "max_position_embeddings", 0))
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    if special["pad_token_id"] is None:
        special["pad_token_id"] = special["eos_token_id"]
    small: dict[str, Callable[[], Any]] = {
        "opt": lambda: transformers.OPTForCausalLM(
            transformers.OPTConfig(
                vocab_size=tokens,
                hidden_size=width,
                word_embed_proj_dim=width,
                ffn_dim=4 * width,
                num_hidden_layers=min(depth, 12),
                num_attention_heads=heads,
                # A picture and two questions.
                max_position_embeddings=min(max(2 * longest, 2048), 16384),
                **special,
            )
        ),
        "distilbert": lambda: transformers.DistilBertModel(
            transformers.DistilBertConfig(
                vocab_size=tokens,
                dim=width,
                hidden_dim=4 * width,
                n_layers=min(depth, 6),
                n_heads=heads,
                max_position_embeddings=_LONGEST_TEXT,
                pad_token_id=special["pad_token_id"],
            )
        ),
    }
    transformers.set_seed(bench.seed)
    for name, make in small.items():
        if str(folder / name) in (config.small_name, config.cls_name):
            _save(make(), tokenizer, folder / name)


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a small model with a tokenizer of its own, unless it is there."""
    if (folder / _SAVED_FILE).is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Others, such as token types, are more than these models take.
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / _SAVED_FILE, {})


def vocabulary_of(model: Any) -> int:
    """Return how many tokens a model gives logits for."""
    head = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if head is None else head.weight.shape[0])
