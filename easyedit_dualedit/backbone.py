"""What a vision-language model must answer before it can be edited.

Three questions: where are its decoder layers, which positions are vision, where does the prompt
end. The answers come from the model's and the processor's own interfaces, never from a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, LayerError, PromptEndError

_PROBES = ("a", "B?", "7 .", "two words")
_LONGEST_MARKER = 16


@dataclass(frozen=True)
class Backbone:
    """The parts of a vision-language model that an editor touches or reads."""

    model: nn.Module
    layers: tuple[nn.Module, ...]
    """Decoder layers of the language model, in order."""
    hidden_size: int
    image_token_id: int
    """Id that stands at every vision position of a row of token ids."""

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Return the parts of `model`.

        Raises:
            BackboneError: naming the question that the model does not answer.
        """
        layers = _decoder_layers(model)
        config: Any = getattr(model, "config", None)
        token = getattr(config, "image_token_id", None)
        if token is None:
            token = getattr(config, "image_token_index", None)
        if token is None:
            raise BackboneError(
                f"{type(model).__name__} does not say which positions are vision: its config has"
                " neither image_token_id nor image_token_index; use a model whose processor puts"
                " one image token id at every vision position"
            )
        text = config.get_text_config()
        return cls(model, layers, int(text.hidden_size), int(token))

    @property
    def device(self) -> torch.device:
        """The device on which the model takes its inputs."""
        first = next(self.model.parameters())
        if not first.is_meta:
            return first.device
        # accelerate keeps offloaded weights as meta tensors between the calls of their module.
        for module in self.model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return first.device

    def require_layers(self, layers: Sequence[int], *, names: Sequence[str] = ()) -> None:
        """Check that every layer exists.

        Raises:
            LayerError: naming the first that does not.
        """
        count = len(self.layers)
        for position, layer in enumerate(layers):
            if not 0 <= layer < count:
                name = names[position] if position < len(names) else "layer"
                raise LayerError(
                    f"{name} = {layer}, but this model has {count} decoder layers"
                    f" (0-{count - 1}); set {name} within them"
                )

    def vision_positions(self, input_ids: Tensor) -> Tensor:
        """Return True at the image tokens, shape [b, s]."""
        return input_ids == self.image_token_id


@dataclass(frozen=True)
class PromptMarker:
    """The token ids with which a chat template ends every prompt."""

    ids: tuple[int, ...]

    @classmethod
    def of(cls, processor: Any) -> Self | None:
        """Return the marker of a processor's chat template, or None if it has no template."""
        if not getattr(processor, "chat_template", None):
            return None
        rows = [_template_ids(processor, probe) for probe in _PROBES]
        ids: list[int] = []
        for column in zip(*(reversed(row) for row in rows), strict=False):
            if len(set(column)) > 1 or len(ids) == _LONGEST_MARKER:
                break
            ids.append(column[0])
        return cls(tuple(reversed(ids))) if ids else None

    def last_index(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the index of the last prompt token of each row, shape [b].

        The last occurrence counts, since an earlier turn ends with the same ids.

        Args:
            input_ids: token ids, shape [b, s].
            attention_mask: True (or 1) where a token is real, shape [b, s].

        Raises:
            PromptEndError: naming the rows in which the marker does not occur.
        """
        length = len(self.ids)
        if input_ids.shape[1] < length:
            raise PromptEndError(self._missing(range(input_ids.shape[0])))
        marker = torch.tensor(self.ids, device=input_ids.device)
        windows = input_ids.unfold(1, length, 1)  # [b, s - length + 1, length]
        found = (windows == marker).all(-1) & attention_mask.bool()[:, length - 1 :]
        if not bool(found.any(1).all()):
            raise PromptEndError(self._missing((~found.any(1)).nonzero().flatten().tolist()))
        positions = torch.arange(found.shape[1], device=input_ids.device)
        return torch.where(found, positions, -1).amax(1) + length - 1

    def _missing(self, rows: Sequence[int]) -> str:
        return (
            f"the end of the prompt cannot be found in rows {list(rows)}: they lack the chat"
            f" template's generation prompt (token ids {list(self.ids)}); build inputs with the"
            " processor's chat template and add_generation_prompt=True, or pass labels that are"
            " -100 over the prompt"
        )


def _decoder_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    part: Any = model
    for _ in range(4):
        layers = getattr(part, "layers", None)
        if isinstance(layers, nn.ModuleList) and len(layers):
            return tuple(layers)
        decoder = part.get_decoder() if hasattr(part, "get_decoder") else None
        if decoder is None or decoder is part:
            break
        part = decoder
    raise BackboneError(
        f"{type(model).__name__} does not say where its decoder layers are: following"
        " get_decoder() leads to no list named layers; use a transformers image-text-to-text model"
    )


def _template_ids(processor: Any, text: str) -> list[int]:
    message = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return list(processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])
