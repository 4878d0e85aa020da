"""EasyEdit's trainer with the losses that DualEdit is trained with.

EasyEdit's own trains on the rephrases and on locality, but on the request itself never. The same
configuration, datasets and archives serve both.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.plugin.host import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.legacy import LegacyModel, picture_of
from easyedit_dualedit.plugin.picture_items import DrawnItems, PictureItems
from easyedit_dualedit.plugin.ports.model import is_port
from easyedit_dualedit.plugin.samples import METRIC_OF, records_in, records_of
from easyedit_dualedit.plugin.scope import ScopeRecord
from easyedit_dualedit.plugin.trainer_calls import TrainingLength
from easyedit_dualedit.train.drawn_targets import drawn_targets
from easyedit_dualedit.train.gate_trainer import make_gate, records_for_gate
from easyedit_dualedit.train.losses import answer_cross_entropy, answer_divergence, answer_logits
from easyedit_dualedit.train.step import TrainingStep
from easyedit_dualedit.train.trainer import schedule_of

_LOCALITY = {name: metric for name, metric in METRIC_OF.items() if metric not in IN_SCOPE}
_LOSS_NAMES = {
    "reliability": "loss/reliability",
    "text_generality": "loss/edit",
    "image_generality": "loss/image_edit",
    "text_locality": "loss/loc",
    "image_locality": "loss/image_loc",
}
_ACCURACY_NAMES = {
    "reliability": "inner/acc",
    "text_generality": "edit/acc",
    "image_generality": "image_rephrase/acc",
    "text_locality": "loc/acc",
    "image_locality": "image_loc/acc",
}


_MultimodalTrainer: Any = find_host().module("trainer.MultimodalTrainer").MultimodalTrainer
_safe_backward: Any = find_host().module("trainer.utils").safe_backward


class DualEditTrainer(_MultimodalTrainer):  # type: ignore[misc]  # EasyEdit is untyped
    """`MultimodalTrainer` with a loss on the request, a weight for each loss, and a trained gate.

    Queries of a training step share the frozen layers (`TrainingStep`), where EasyEdit's datasets
    give questions; batches that they have tokenised run forward by forward.

    EasyEdit's own trainer gives no access to the data outside its steps, so with it the gate is
    calibrated on the queries of the first steps, and a `learned` gate stays untrained.
    """

    follows_recipe = True
    """Whether `schedule` and `augment_targets` are taken notice of."""
    train_loader: Any

    def __init__(self, config: DualEditMultimodalHparams, train_set: Any, val_set: Any):
        """Prepare the training that `config` describes, seeded by it.

        Args:
            config: hyperparameters of DualEdit.
            train_set: a `VQADataset` or `CaptionDataset` of EasyEdit.
            val_set: the same, to validate on.
        """
        super().__init__(config, train_set, val_set)
        self.weights = config.training_config()
        if not config.eval_only:
            self._follow_recipe(config)

    def _follow_recipe(self, config: DualEditMultimodalHparams) -> None:
        """Draw targets and let the learning rate follow its schedule, as the command `train`."""
        length = TrainingLength.of(find_host(), config, len(self.train_set))
        # EasyEdit counts batches, a configuration steps.
        count = max(1, length.iterations // config.accumulate_bs)
        self.weights = replace(self.weights, steps=count)
        loader = self.train_loader
        self.train_loader = DataLoader(
            DrawnItems(self.train_set, self.drawn),
            batch_size=loader.batch_size,
            shuffle=True,
            collate_fn=loader.collate_fn,
        )
        for group in self.opt.param_groups:
            group["lr"] = config.lr  # a checkpoint has that of its last step
        steps = max(1, length.steps // config.accumulate_bs)
        self._schedule = schedule_of(self.opt, replace(self.weights, steps=steps))

    @cached_property
    def drawn(self) -> dict[int, str]:
        """The targets that are drawn in place of those of some training records."""
        config = self.config.training_config()
        tokenizer = self.model.editor.encoder.tokenizer
        count = len(self.train_set)
        return drawn_targets(count, config.augment_targets, tokenizer, config.seed)

    def train_step(self, batch: Any) -> Any:
        """Take EasyEdit's step, and let the learning rate follow its schedule."""
        numbers = super().train_step(batch)
        if self.global_iter % self.config.accumulate_bs == 0:
            self._schedule.step()
        return numbers

    def run(self) -> None:
        """Calibrate and train the gate, then train the adapters as EasyEdit does.

        The gate comes first, since it reads the frozen model alone and every checkpoint holds it.
        It is left as it is where training goes on from an archive.

        Raises:
            CalibrationError: if there are too few records to train a gate on.
        """
        if self.archive is None and not self.config.eval_only:
            self._train_gate()
        super().run()

    def _train_gate(self) -> None:
        editor = self.model.editor
        base = self.model.model
        to_picture = picture_of if isinstance(base, LegacyModel) or is_port(base) else None
        items = getattr(self.train_set, "_data", None)
        taken = items.unread if isinstance(items, PictureItems) else self.train_set.__getitem__
        places = records_for_gate(range(len(self.train_set)), self.weights)
        records = records_of([taken(index) for index in places], to_picture)
        make_gate(editor, records, self.weights, progress=not self.config.silent)
        # What training sees would only calibrate the gate again, on fewer records.
        self.model.scope = ScopeRecord(capacity=0)

    def edit_step(
        self, batch: Mapping[str, Any], training: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """Return total, edit, locality and base loss of one batch, and numbers to log.

        In training, the gradient of the total is added to the adapters' parameters.
        """
        self.model.train(training)
        records = records_in(batch) if training else None
        if records is not None:
            return self._shared_step(records)
        with torch.no_grad():
            plain = {metric: self.model(batch[name]).logits for name, metric in _LOCALITY.items()}
        start = time.perf_counter()
        edited, info = self.model.edit(batch["edit_inner"], batch["cond"])
        info = {**info, "time/edit": time.perf_counter() - start}
        losses: dict[str, Tensor] = {}
        accuracy: dict[str, float] = {}
        with torch.set_grad_enabled(training):
            for name, metric in METRIC_OF.items():
                output = edited(batch[name])
                if metric in IN_SCOPE:
                    losses[metric] = answer_cross_entropy(output.logits, output.labels)
                    accuracy[metric] = _accuracy(output)
                else:
                    before = plain[metric]
                    losses[metric] = answer_divergence(before, output.logits, output.labels)
                    accuracy[metric] = _agreement(before, output)
            weighted = [self._weight(metric) * loss for metric, loss in losses.items()]
            total = torch.stack(weighted).sum()
        values = {metric: loss.item() for metric, loss in losses.items()}
        return self._finished(total, values, accuracy, info, training)

    @cached_property
    def _steps(self) -> TrainingStep:
        return TrainingStep.within(self.model.editor, self.weights)

    def _shared_step(
        self, records: Sequence[Record]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """Take a step whose queries share the frozen layers; metrics of weight 0 are not run."""
        start = time.perf_counter()
        losses = self._steps.losses(records, self.weights)
        info = {"time/forward": time.perf_counter() - start}
        return self._finished(losses.total, losses.by_metric, losses.accuracy, info, True)

    def _finished(
        self,
        total: Tensor,
        losses: Mapping[str, float],
        accuracy: Mapping[str, float],
        info: Mapping[str, float],
        training: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
        """Return what `edit_step` does; in training, after the backward pass."""
        if training:
            _safe_backward(
                total, self.model.outer_parameters(), self.config.accumulate_bs, allow_unused=True
            )
        total = total.detach()
        numbers = {**info, "loss/total": total.item(), "loss/total_edit": total.item()}
        numbers |= {_LOSS_NAMES[metric]: value for metric, value in losses.items()}
        numbers |= {_ACCURACY_NAMES[metric]: value for metric, value in accuracy.items()}
        edit, locality = (
            torch.tensor(losses.get(metric, 0.0)) for metric in ("text_generality", "text_locality")
        )
        return total, edit, locality, torch.zeros(()), numbers

    def _weight(self, metric: str) -> float:
        return float(getattr(self.weights, f"{metric}_weight"))


def _accuracy(output: Any) -> float:
    predicted, expected = answer_logits(output.logits, output.labels)
    return float((predicted.argmax(-1) == expected).float().mean())


def _agreement(plain: Tensor, output: Any) -> float:
    before = answer_logits(plain, output.labels)[0].argmax(-1)
    after = answer_logits(output.logits, output.labels)[0].argmax(-1)
    return float((before == after).float().mean())
