"""The model that EasyEdit's trainer trains: adapters and gate around a frozen base model."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.model.inputs import IGNORED, Batch, input_device
from easyedit_dualedit.plugin.archives import (
    TrainedAdapters,
    described_state,
    load_weights,
    with_answers_joined,
)
from easyedit_dualedit.plugin.host import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.legacy import LegacyModel, LegacySamples
from easyedit_dualedit.plugin.losses import shifted_loss
from easyedit_dualedit.plugin.models import load_processor
from easyedit_dualedit.plugin.ports.model import PortModel, is_port
from easyedit_dualedit.plugin.ports.processor import PortProcessor
from easyedit_dualedit.plugin.ports.samples import PortSamples
from easyedit_dualedit.plugin.samples import SampleReader, Samples, TransformersSamples, answered
from easyedit_dualedit.plugin.scope import ScopeRecord

_EditableModel: Any = find_host().module("trainer.algs.editable_model").EditableModel
_masked_log_probs: Any = find_host().module("trainer.losses").masked_log_probs


class DualEditEditable(_EditableModel):  # type: ignore[misc]  # EasyEdit is untyped
    """What `ALG_TRAIN_DICT["DUALEDIT"]` holds.

    Its `state_dict` is that of adapters and gate, as tensors only.
    """

    def __init__(
        self,
        model: nn.Module,
        config: DualEditMultimodalHparams,
        model_constructor: Any,
    ):
        """Build adapters around `model`, which is frozen: untrained, or those of the archive.

        Raises:
            ConfigError: if the hyperparameters describe no method.
            ArchiveError: if the archive is missing, damaged, of another model, or holds other
                adapters than the hyperparameters describe.
            BackboneError: if the model or its processor lacks what an editor needs.
            LayerError: if a layer does not exist in the model.
        """
        super().__init__(model, config, model_constructor)
        model.requires_grad_(False)
        self.scope = ScopeRecord()
        self._ends = config.training_config().end_of_answer
        self.samples: SampleReader
        # EasyEdit sets an edit_loss_fn in __init__, which a method would not replace; for
        # transformers models it compares each token with the logits of the token itself.
        if isinstance(model, LegacyModel):
            self.editor = _editor_of(model.base, model.processor, config, joined=True)
            self.samples = LegacySamples(self.editor.encoder)
            self.edit_loss_fn: Any = _LegacyLoss(model.processor.tokenizer)
        elif is_port(model):
            base = PortModel(model)
            self.editor = _editor_of(base, PortProcessor(base), config)
            self.samples = PortSamples.of(self.editor)
            self.edit_loss_fn = partial(shifted_loss, _masked_log_probs)
        else:
            processor = load_processor(config.name or config.model_name)
            self.editor = _editor_of(model, processor, config, joined=True)
            self.samples = TransformersSamples(self.editor.encoder)
            self.edit_loss_fn = partial(shifted_loss, _masked_log_probs)

    def forward(self, samples: Samples) -> Any:
        """Return the unedited model's output for a batch of EasyEdit's."""
        self.model.eval()
        batch = self.samples.read(samples)
        return answered(self.editor.backbone.model(**batch.inputs), batch)

    def edit(
        self, samples: Samples, condition: Any = None, detach_history: bool = False
    ) -> tuple["EditedSamples", dict[str, float]]:
        """Return the model with one edit for each row of a batch, and numbers to log.

        In training, row i of every batch given to the edited model sees edit i with the gate open,
        so that its answer depends on the adapters whatever the gate thinks. In evaluation the gate
        decides.

        Args:
            samples: the requests, with their targets.
            condition: EasyEdit's text of the edit, which DualEdit does not need.
            detach_history: EasyEdit's; an edit has none.
        """
        del condition, detach_history
        self.model.eval()
        requests = self.samples.read(samples)
        signals = self.editor.read_batch(requests)
        gate = self.editor.open_gate() if self.training else self._deciding_gate()
        rows = torch.arange(len(signals), device=input_device(self.editor.backbone.model))
        edited = self.editor.edited(signals, assignment=rows, gate=gate)
        return EditedSamples(self, edited, signals, requests), {}

    def outer_parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser trains: the adapters."""
        return list(self.editor.adapters.parameters())

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        """Return adapters and gate, the gate calibrated on what training has seen."""
        self.scope.calibrate(self.editor.gate)
        return described_state(self.editor)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], **_: Any) -> None:
        """Load what `state_dict` returned.

        Raises:
            ArchiveError: if it does not fit.
        """
        load_weights(self.editor, state_dict, "the checkpoint")
        if not bool(self.editor.gate.thresholds.isnan().all()):
            # A calibration on much data is not to be replaced by one on the first few steps.
            self.scope = ScopeRecord(capacity=0)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the adapters; the base model stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def learns_to_end(self) -> bool:
        """Whether losses ask for the end of the answer now: in training, if configured."""
        return self.training and self._ends

    def _deciding_gate(self) -> Gate:
        self.scope.calibrate(self.editor.gate)
        try:
            _ = self.editor.gate.threshold
        except CalibrationError:
            # Evaluation before any training: nothing is known yet of what is in scope.
            return self.editor.open_gate()
        return self.editor.gate


class EditedSamples:
    """An edited model that is called with batches of EasyEdit's."""

    def __init__(
        self,
        owner: DualEditEditable,
        edited: EditedModel,
        signals: list[EditSignal],
        requests: Batch,
    ):
        """Combine the edited model with the edits that it holds, one a row."""
        self.edited = edited
        self._owner = owner
        self._signals = signals
        self._requests = requests

    def __call__(self, samples: Samples) -> Any:
        """Return the edited model's output for a batch, with `labels` beside `logits`."""
        batch = self._owner.samples.read(samples, with_end=self._owner.learns_to_end)
        if self._owner.training:
            self._owner.scope.add(self._owner.editor, batch, self._requests, self._signals)
        return answered(self.edited(layout=batch.layout, **batch.inputs), batch)


def _editor_of(
    model: nn.Module, processor: Any, config: DualEditMultimodalHparams, *, joined: bool = False
) -> DualEditor:
    if config.archive is not None:
        # The hyperparameters may leave to the archive which layers the adapters act on.
        return TrainedAdapters.read(config.archive).editor(model, processor, config, joined=joined)
    described = config.dualedit_config()
    if joined:
        described = with_answers_joined(described, model)
    return DualEditor(model, processor, described)


class _LegacyLoss:
    """EasyEdit's loss for models of its release, without the special tokens in its labels."""

    def __init__(self, tokenizer: Any):
        self._special = torch.tensor(sorted(tokenizer.all_special_ids))

    def __call__(self, config: Any, logits: Tensor, labels: Tensor, **_: Any) -> Any:
        labels = labels.to(logits.device)
        special = torch.isin(labels, self._special.to(labels.device))
        return _masked_log_probs(config, logits, labels.masked_fill(special, IGNORED), shift=True)
