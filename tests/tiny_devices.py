"""Tiny models on a pretended device, each with editors, records and requests."""

from dataclasses import dataclass
from typing import Any

import torch
from tiny_editors import picture, request_of, tiny_config
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.model.inputs import Batch, Query

NAMES = ("llava", "llava-onevision", "qwen2-vl", "blip2", "gemma3")

REQUESTS = (
    request_of(),
    Query("How many squares?", picture("green"), "two"),
    Query("Where is the star?", None, "top left"),
)


@dataclass(frozen=True, repr=False)
class Subject:
    """A model on the device, an editor whose adapters change something, and records."""

    tiny: TinyModel
    editor: DualEditor
    records: list[Record]

    @property
    def model(self) -> Any:
        """The unedited model."""
        return self.tiny.model

    def fresh(self) -> DualEditor:
        """Return an untrained editor of the same model."""
        torch.manual_seed(0)
        config = tiny_config(gate={"kind": "learned"})
        return DualEditor(self.model, self.tiny.processor, config)

    def always(self) -> Gate:
        """Return a gate that opens for whatever is nearest."""
        return self.editor.gate.with_config(GateConfig("cosine", -1.0))

    def encode(self, queries: Any = REQUESTS, **options: Any) -> Batch:
        """Return the inputs of some questions, which lie on the device."""
        batch = self.editor.encoder.encode(queries, **options)
        assert all(is_there(each) for each in batch.inputs.values())
        return batch


def is_there(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is on the pretended device."""
    return tensor.device.type == "gpu"
