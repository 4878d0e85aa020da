"""A pretrained language model as SERAC's counterfactual model.

EasyEdit's branch for BLIP-2 makes an OPT of whatever is named. No OPT has the vocabulary of
another model, which the mixing of probabilities asks for, so that other causal language models
are handed to it here, with OPT's parts where it looks for them.
"""

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.model.backbone import Backbone

_OPT_TYPE = "opt"


class CausalLanguageModel(nn.Module):
    """A causal language model that EasyEdit's SERAC calls as an OPT."""

    def __init__(self, base: Any, tokens: int):
        """Keep the language model.

        Args:
            base: of any architecture.
            tokens: of the vocabulary that its probabilities are mixed with.
        """
        super().__init__()
        self.base = base
        self.tokens = tokens
        self.config: Any = base.config

    @property
    def model(self) -> Any:
        """OPT's path to the word embeddings."""
        return SimpleNamespace(
            decoder=SimpleNamespace(embed_tokens=self.base.get_input_embeddings())
        )

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> Any:
        """Return an output whose logits are [b, s, `tokens`].

        Rows that fill up an embedding for speed have no token: they are cut off, or get no
        probability.
        """
        del labels  # EasyEdit computes its own loss of the mixture
        output = self.base(**inputs, use_cache=False)
        logits: Tensor = output.logits
        missing = self.tokens - logits.shape[-1]
        # A negative count cuts off.
        floor = torch.finfo(logits.dtype).min
        output.logits = nn.functional.pad(logits, (0, missing), value=floor)
        return output


def counterfactual_model(folder: str, tokens: int) -> tuple[nn.Module, Any] | None:
    """Return a language model as SERAC wants it and its tokenizer, or None for an OPT.

    Args:
        folder: or hub id.
        tokens: of the vocabulary that its probabilities are mixed with.
    """
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type == _OPT_TYPE and config.vocab_size == tokens:
        return None
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return CausalLanguageModel(base, tokens), tokenizer


def own_language_model(backbone: Backbone) -> Any:
    """Return a copy of a model's language model, in float32, that stands alone.

    Raises:
        ConfigError: if transformers has no causal language model of its kind.
    """
    model: Any = backbone.model
    text = model.config.get_text_config()
    causal: Any = transformers.AutoModelForCausalLM
    try:
        own = causal.from_config(text, dtype=torch.float32)
        own.base_model.load_state_dict(backbone.decoder.state_dict())
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"small_name = own: the language model of {type(model).__name__} cannot stand alone"
            f" ({line}); give the folder of one with the model's vocabulary, or leave it out"
        ) from error
    head, own_head = model.get_output_embeddings(), own.get_output_embeddings()
    if head is not None:
        own_head.load_state_dict(head.state_dict())
    return own


def same_tokens(folder: str, tokenizer: Any) -> bool:
    """Return whether a model's tokens are those of another tokenizer, by their numbers.

    Args:
        folder: of the model, or its hub id.
        tokenizer: the other one; tokens that were added to it may be missing in the model's.
    """
    try:
        own = transformers.AutoTokenizer.from_pretrained(folder).get_vocab()
    except (OSError, ValueError):
        return False
    known = tokenizer.get_vocab()
    missing = known.keys() - own.keys() - tokenizer.get_added_vocab().keys()
    return not missing and all(known.get(token) == number for token, number in own.items())
