"""What is tried on a device: an editor on a model of random weights, its records and questions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from benchmarks.subject import Shapes, editor_of, records_of
from benchmarks.trials import require
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.model.inputs import Batch, Query

RECORDS = 12

TINY = Shapes(
    hidden=32,
    inner=64,
    layers=4,
    heads=4,
    side=56,
    tower_hidden=32,
    tower_inner=64,
    tower_layers=2,
    tower_heads=2,
    text_layer=1,
    vision_layer=2,
    width=16,
    batch=2,
    repeats=3,
    steps=2,
)
"""Shapes for a processor, to try the trials themselves."""

_ROUNDING = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""By how much logits that should be equal may differ, as a share of the largest."""

_QUESTIONS = ("What colour is it?", "How many?", "Where is the star in this picture?", "Why?")
_TARGETS = ("a red circle", "three", "at the left side", "it is")


@dataclass(frozen=True)
class DeviceSubject:
    """A model on a device, and what it is asked."""

    shapes: Shapes
    device: torch.device

    @cached_property
    def editor(self) -> DualEditor:
        """An editor whose adapters change something."""
        return editor_of(self.shapes, self.device)

    @cached_property
    def model(self) -> Any:
        """The unedited model."""
        return self.editor.backbone.model

    @cached_property
    def records(self) -> list[Record]:
        """Records to train on and to measure."""
        return records_of(RECORDS, self.shapes.side)

    @cached_property
    def requests(self) -> list[Query]:
        """Edits of other questions, of other lengths."""
        pictures = [record.request.image for record in self.records]
        return [
            Query(question, picture, target)
            for question, picture, target in zip(_QUESTIONS, pictures, _TARGETS, strict=False)
        ]

    @cached_property
    def mixed(self) -> list[Query]:
        """Questions of other lengths, the last without a picture."""
        return [*self.requests[:3], Query("Where is the star?", None, "at the left")]

    def shallow(self) -> "DeviceSubject":
        """Return a subject of the same width with few layers."""
        shapes = replace(self.shapes, layers=4, tower_layers=2, text_layer=1, vision_layer=2)
        return DeviceSubject(shapes, self.device)

    def gate(self, threshold: float) -> Gate:
        """Return a cosine gate: of -1 it always opens, of 1 for the edit's own question alone."""
        return self.editor.gate.with_config(GateConfig("cosine", threshold))

    def edited(self, request: Query, threshold: float = -1.0) -> EditedModel:
        """Return the model with one edit."""
        with torch.no_grad():
            return self.editor.edited(self.editor.read([request]), gate=self.gate(threshold))

    def encode(self, queries: Sequence[Query], **options: Any) -> Batch:
        """Return the inputs of some questions."""
        return self.editor.encoder.encode(queries, **options)

    @torch.no_grad()
    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Return the logits of the model, edited or not, [b, s, v]."""
        known = {"layout": batch.layout} if isinstance(model, EditedModel) else {}
        logits: Tensor = model(**batch.inputs, use_cache=False, **known).logits
        return logits

    def generate(self, model: Any, batch: Batch, tokens: int = 5, **options: Any) -> Tensor:
        """Return what the model says after some prompts, [b, t]."""
        made: Tensor = model.generate(**batch.inputs, max_new_tokens=tokens, **options)
        return made[:, batch.inputs["input_ids"].shape[1] :]

    @property
    def rounding(self) -> float:
        """By how much logits may differ, as a share of the largest."""
        return _ROUNDING[self.model.dtype]

    def require_close(self, found: Tensor, expected: Tensor, what: str) -> float:
        """Return by how much numbers differ, as a share of the largest.

        Raises:
            FailedError: if that is more than rounding explains, or they are no numbers.
        """
        found, expected = found.float(), expected.float()
        require(bool(found.isfinite().all()), f"{what}: numbers are not finite")
        share = float((found - expected).abs().amax() / expected.abs().amax())
        require(share <= self.rounding, f"{what}: {share:.1%} of the largest apart")
        return share


def hooks_on(model: Any) -> int:
    """Return how many hooks the modules of a model have."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )
