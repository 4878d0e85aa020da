"""Completes processors that EasyEdit cannot ask a question with."""

import importlib
from typing import Any

from easyedit_dualedit.model.families import Family, family_of
from easyedit_dualedit.model.text_alone import text_alone


def completed(processor: Any, config: Any) -> Any:
    """Return a processor that takes what EasyEdit asks of it, for a model of this configuration."""
    family = family_of(config)
    return processor if family.chat_template is None else CompleteProcessor(processor, family)


class CompleteProcessor:
    """A processor that writes prompts and takes text alone, whatever its family's own does.

    EasyEdit asks every model through its chat template, and some questions without a picture;
    the processors of BLIP-2 and PaliGemma have no template, the one's model fails without pixels,
    and the other's processor refuses text alone. Everything else is the processor's own.
    """

    def __init__(self, processor: Any, family: Family):
        """Complete `processor`, which is changed only in getting a template if it has none."""
        self._processor = processor
        self._family = family
        if not getattr(processor, "chat_template", None):
            processor.chat_template = family.chat_template

    def __call__(self, images: Any = None, text: Any = None, **options: Any) -> Any:
        """Return the model's inputs for texts with or without pictures."""
        if images is not None:
            encoded = self._processor(images=images, text=text, **options)
            encoded.pop("labels", None)
            return encoded
        features: Any = importlib.import_module("transformers").BatchFeature
        return features(text_alone(self._processor, self._family, text, **options))

    def __getattr__(self, name: str) -> Any:
        """Return the processor's own attribute."""
        if name.startswith("__") or name == "_processor":
            raise AttributeError(name)
        return getattr(self._processor, name)
