"""A language model as SERAC's counterfactual model."""

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import TinyModel, tiny_llava_onevision

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.plugin.rows.counterfactual import (
    CausalLanguageModel,
    counterfactual_model,
    own_language_model,
    same_tokens,
)

_TOKENS = 11


def _small(tokens: int = _TOKENS) -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(vocab_size=tokens, n_embd=16, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("tokens", [_TOKENS - 3, _TOKENS, _TOKENS + 3])
def test_logits_are_as_wide_as_those_that_they_are_mixed_with(tokens: int) -> None:
    base = _small()
    model = CausalLanguageModel(base, tokens)
    ids = torch.arange(5)[None]
    with torch.no_grad():
        got, expected = model(input_ids=ids, labels=ids).logits, base(input_ids=ids).logits
    shared = min(tokens, _TOKENS)
    assert got.shape == (1, 5, tokens)
    torch.testing.assert_close(got[..., :shared], expected[..., :shared])
    assert not got.softmax(-1)[..., shared:].any()


def test_the_embeddings_are_where_easyedit_looks_for_those_of_an_opt() -> None:
    base = _small()
    model = CausalLanguageModel(base, _TOKENS)
    assert model.model.decoder.embed_tokens is base.get_input_embeddings()
    assert {name.split(".")[0] for name in model.state_dict()} == {"base"}


def test_a_models_own_language_model_stands_alone(fresh: TinyModel) -> None:
    own = own_language_model(Backbone.of(fresh.model)).eval()
    ids = torch.arange(20, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(own(input_ids=ids).logits, fresh.model(input_ids=ids).logits)
        own.get_input_embeddings().weight.zero_()
    assert fresh.model.get_input_embeddings().weight.any()


def test_a_language_model_that_cannot_stand_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llava_onevision().model
    vision = model.config.vision_config
    monkeypatch.setattr(model.config, "get_text_config", lambda: vision)
    with pytest.raises(ConfigError, match="cannot stand alone"):
        own_language_model(Backbone.of(model))


def test_an_opt_is_left_to_easyedit(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=_TOKENS, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=1
    )
    config.save_pretrained(tmp_path)
    assert counterfactual_model(str(tmp_path), _TOKENS) is None


def test_tokens_are_compared_by_their_numbers(fresh: TinyModel, tmp_path: Path) -> None:
    tokenizer = fresh.processor.tokenizer
    tokenizer.save_pretrained(tmp_path)
    assert same_tokens(str(tmp_path), tokenizer)
    longer = type(tokenizer).from_pretrained(tmp_path)
    longer.add_tokens(["<added>"])
    assert same_tokens(str(tmp_path), longer)
    longer.save_pretrained(tmp_path / "longer")
    assert not same_tokens(str(tmp_path / "longer"), tokenizer)
    assert not same_tokens(str(tmp_path / "nothing"), tokenizer)
