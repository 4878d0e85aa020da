"""Lets EasyEdit's release drive a transformers vision-language model.

The release knows two models of its own, BLIP-2 and MiniGPT-4, and talks to them in dictionaries of
`text_input`, an `image` tensor, `prompts_len` and `labels`. Neither model can be built with today's
transformers. The classes here take such dictionaries and answer through any image-text-to-text
model of transformers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.plugin.samples import answered

# What EasyEdit's BlipImageEvalProcessor normalises with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class LegacySamples:
    """Reads sample dictionaries; the rows end with the answer, where EasyEdit looks for it."""

    def __init__(self, encoder: Encoder):
        """Keep the encoder of the model that will answer."""
        self.encoder = encoder
        self._special = frozenset(encoder.tokenizer.all_special_ids)

    def read(self, samples: Mapping[str, Any], *, with_end: bool = False) -> Batch:
        """Return model inputs for sample dictionaries, with their layout and labels.

        Args:
            samples: a sample dictionary.
            with_end: without effect; EasyEdit's release has no place for an end in its labels.

        Raises:
            DataError: if a text does not end with its answer.
        """
        del with_end
        texts: Sequence[str] = samples["text_input"]
        images = samples["image"]
        pictures = [None] * len(texts) if images is None else [picture_of(i) for i in images]
        labels = samples["labels"]
        answers = [self._answer(*row) for row in zip(texts, labels, strict=True)]
        queries = [
            Query(_prompt_of(text, answer), picture, answer)
            for text, picture, answer in zip(texts, pictures, answers, strict=True)
        ]
        return self.encoder.encode(queries)

    def _answer(self, text: str, label: str | Tensor) -> str:
        """Return the answer that a text ends with, white space of the target included."""
        if isinstance(label, str):
            return label
        tokenizer = self.encoder.tokenizer
        # The release counts special tokens in, as in "<s> red".
        ids = [token for token in label[label >= 0].tolist() if token not in self._special]
        answer: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
        core = text.rstrip()
        if not answer or not core.endswith(answer):
            return answer
        # Not every tokenizer decodes the white space that it has read, so the text tells.
        start = first = len(core) - len(answer)
        while first and text[first - 1].isspace():
            first -= 1
        for begin in range(start, first - 1, -1):
            if tokenizer(text[begin:], add_special_tokens=False)["input_ids"] == ids:
                return text[begin:]
        return text[start:]


class LegacyModel(nn.Module):
    """A transformers model that is called as EasyEdit's release calls its own models."""

    def __init__(self, base: nn.Module, processor: Any):
        """Keep the model and its processor.

        Raises:
            BackboneError: if the model or the processor lacks what an editor needs.
        """
        super().__init__()
        self.base = base
        self.processor = processor
        # The release scores the tokens of the target alone.
        given = BackboneConfig(answer_prefix="")
        self._samples = LegacySamples(Encoder(Backbone.of(base, given), processor))

    def forward(self, samples: Mapping[str, Any] | None = None, **inputs: Any) -> Any:
        """Return the model's output for sample dictionaries, with `labels` beside `logits`.

        Inputs of the processor's own go to the model as they are.
        """
        if samples is None:
            return self.base(**inputs)
        batch = self._samples.read(samples)
        return answered(self.base(**batch.inputs), batch)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the model generates."""
        model: Any = self.base
        return model.generate(*args, **kwargs)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model; the release asks for "cuda:cpu" where its hyperparameters say cpu."""
        if args and isinstance(args[0], str):
            args = (args[0].removeprefix("cuda:") if _is_no_device(args[0]) else args[0], *args[1:])
        return super().to(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.base.parameters()).device


class LegacyEdited:
    """An edited model that is called as EasyEdit's release calls its own models.

    Everything else, `generate` among it, is the edited transformers model's.
    """

    def __init__(self, model: LegacyModel, edited: EditedModel):
        """Combine the model that reads samples with the one that answers."""
        self.edited = edited
        self._samples = model._samples

    def __call__(self, samples: Mapping[str, Any] | None = None, **inputs: Any) -> Any:
        """Return the edited model's output for sample dictionaries, or a processor's inputs."""
        if samples is None:
            return self.edited(**inputs)
        batch = self._samples.read(samples)
        return answered(self.edited(layout=batch.layout, **batch.inputs), batch)

    def __getattr__(self, name: str) -> Any:
        """Return the edited model's attribute."""
        if name.startswith("__") or name == "edited":
            raise AttributeError(name)
        return getattr(self.edited, name)


def picture_of(tensor: Tensor) -> Image.Image:
    """Return the picture that EasyEdit's image processor made a tensor [3, h, w] of.

    Its size is the tensor's; the original's proportions are lost by then.
    """
    mean, deviation = torch.tensor(_MEAN), torch.tensor(_DEVIATION)
    pixels = tensor.detach().float().cpu() * deviation[:, None, None] + mean[:, None, None]
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(values.numpy())


def _prompt_of(text: str, answer: str) -> str:
    if not answer or not text.endswith(answer):
        raise DataError(
            f"the text {text!r} does not end with its answer {answer!r}, so its prompt is unknown;"
            " check the target of the record, and that tokenizer_name is the model's own"
        )
    return text[: -len(answer)].rstrip()


def _is_no_device(text: str) -> bool:
    return text.startswith("cuda:") and not text.removeprefix("cuda:").isdigit()
