"""A transformers model that is called as EasyEdit's SERAC calls its own BLIP-2."""

import contextlib
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import IGNORED


class DialectModel(nn.Module):
    """A transformers model that is called as EasyEdit's SERAC calls its BLIP-2.

    The parts that SERAC takes the picture through hand on the image features that the language
    model gets, so that no second pass through the vision tower is needed.
    """

    def __init__(self, base: nn.Module, processor: Any):
        """Keep the model.

        Raises:
            BackboneError: if the model or the processor lacks what an editor needs.
        """
        super().__init__()
        self.base = base
        self.encoder = Encoder(Backbone.of(base), processor)
        self.ln_vision = nn.Identity()
        self.visual_encoder = nn.Identity()
        self.query_tokens = torch.zeros(1, 1, 1)
        self.config: Any = base.config
        # Not a module: it has no parameters of its own.
        self.Qformer = SimpleNamespace(
            config=SimpleNamespace(hidden_size=self.encoder.backbone.hidden_size),
            bert=_handing_on,
        )

    def samples(self, inputs: Mapping[str, Tensor], labels: Tensor | None = None) -> dict[str, Any]:
        """Return a sample dictionary for one row of a model's inputs.

        Args:
            inputs: with `input_ids`, [1, s].
            labels: the answer's ids at its positions and IGNORED elsewhere, [1, s].
        """
        ids = inputs["input_ids"]
        is_vision = self.encoder.vision_positions(ids)
        text = ids[0][~is_vision[0]]
        full = torch.full_like(ids, IGNORED) if labels is None else labels.to(ids.device)
        return {
            "text_input": [self.encoder.tokenizer.decode(text, clean_up_tokenization_spaces=False)],
            # The features take its place when the model is called.
            "image": ids if bool(is_vision.any()) else None,
            "labels": full[full != IGNORED][None],
            "inputs": dict(inputs),
            "row_labels": full,
        }

    def samples_of(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return a sample dictionary for inputs with `labels` among them."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.samples(inputs, batch["labels"])

    def forward(self, samples: dict[str, Any]) -> Any:
        """Return the model's output with `labels` and `attention_mask` beside `logits`.

        The picture of the samples is replaced by its features, which SERAC asks for next.
        """
        inputs = samples["inputs"]
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
            seen.append(given["inputs_embeds"])

        handle = self.encoder.backbone.decoder.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            output = self.base(**inputs)
        finally:
            handle.remove()
        ids = inputs["input_ids"]
        if samples["image"] is not None:
            # EasyEdit's linear projection is in 32 bits whatever the model's are.
            samples["image"] = seen[0][self.encoder.vision_positions(ids)].float()[None]
        output.labels = samples["row_labels"]
        output.attention_mask = torch.ones_like(ids)
        return output

    @staticmethod
    def maybe_autocast() -> Any:
        """Return a context that changes nothing."""
        return contextlib.nullcontext()


def _handing_on(*, encoder_hidden_states: Tensor, **_: Any) -> Any:
    return SimpleNamespace(last_hidden_state=encoder_hidden_states)
