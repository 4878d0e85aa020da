"""The losses of one training step in little time: the frozen part of the model runs once for all.

`plain_answers` says what the losses are; here is how the same numbers cost less.

The queries of a step go up to the first edited layer together, without autograd, each picture once
through the vision tower. Queries of one edit about one picture share their beginning. From there
the request's rows go on to the deeper edited layer for the edit signal, the localities' rows to the
end unedited, and all rows to the end edited; the lm_head sees only positions that predict an
answer, and so does most of the last layer. Between a text layer and a deeper vision layer nothing
before the text depends on adapters, so nothing is kept there for a gradient.
"""

import logging
from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.adapter import ProjectedEdit, add_at
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.answer_logits import logits_at
from easyedit_dualedit.model.hooks import LayerEdit
from easyedit_dualedit.model.inputs import IGNORED, input_device
from easyedit_dualedit.model.picture_features import UnknownFeaturesError
from easyedit_dualedit.model.prompts import PER_TOKEN
from easyedit_dualedit.model.query_cache import PreparedQuery
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.config import CACHE_BYTES, TrainingConfig
from easyedit_dualedit.train.frozen_part import FrozenPart, UnsupportedModelError, precision
from easyedit_dualedit.train.losses import AnswerTokens, StepLosses, step_losses, token_divergence
from easyedit_dualedit.train.plain_step import plain_answers
from easyedit_dualedit.train.shared_rows import UnshareableError
from easyedit_dualedit.train.state_folder import StateFolder
from easyedit_dualedit.train.upper_layers import (
    Row,
    RowGroup,
    UpperLayers,
    answers,
    head_of,
    projected_requests,
)

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4
_SHORTCUTS = ("shares", "trims")


class TrainingStep:
    """Computes the losses of one training step after another, on one model that stays as it is."""

    def __init__(
        self,
        editor: DualEditor,
        *,
        budget: int = CACHE_BYTES,
        state_budget: int = CACHE_BYTES,
        folder: Path | None = None,
    ):
        """Keep nothing yet.

        Args:
            editor: its adapters are tried.
            budget: bytes of picture features to keep between steps.
            state_budget: bytes of frozen states to keep between steps; steps of which all queries
                are kept run no frozen layer.
            folder: where to keep frozen states on disk, in half precision, for later runs; None
                keeps none there.
        """
        self._editor = editor
        adapters = editor.adapters
        self.first_layer = min(adapters.layer_of[name] for name in adapters.modalities)
        self.frozen = FrozenPart(
            editor.encoder, self.first_layer, budget=budget, state_budget=state_budget, stays=True
        )
        self._folder = folder
        self._is_checked = False
        self.is_plain = False
        """Whether the model cannot be run from a layer on, so that whole forwards run."""
        self.prepared: dict[Hashable, PreparedQuery] = {}
        """Pixels that were read already, of the pictures of the batch that comes."""

    @classmethod
    def within(cls, editor: DualEditor, config: TrainingConfig) -> Self:
        """Return steps that keep as much between them as a configuration allows."""
        folder = config.state_cache_folder
        return cls(
            editor,
            budget=config.feature_cache_bytes,
            state_budget=config.state_cache_bytes,
            folder=None if folder is None else Path(folder).expanduser(),
        )

    def losses(
        self,
        records: Sequence[Record],
        config: TrainingConfig,
        processes: Processes | None = None,
    ) -> StepLosses:
        """Return the losses of one batch of edits, with the gate held open.

        Args:
            records: this process's share of the batch.
            config: of the training.
            processes: that share the batch; None is this one alone.
        """
        return step_losses(self.answers(records, config), config.weights, processes)

    def answers(
        self, records: Sequence[Record], config: TrainingConfig, *, is_edited: bool = True
    ) -> AnswerTokens:
        """Return the answer tokens of one batch of edits, the gate held open, or of no edits."""
        with precision(input_device(self._editor.backbone.model).type, config.autocast):
            return self._answers(records, config, is_edited=is_edited)

    def read_again(self, records: Sequence[Record], config: TrainingConfig) -> bool:
        """Keep of a batch what `losses` would keep, so that a continued training goes on alike.

        States differ in the last bits with the rows that they are computed beside.

        Returns:
            Whether anything of a further batch may be kept.
        """
        casts = precision(input_device(self._editor.backbone.model).type, config.autocast)
        try:
            with casts:
                self._groups(records, metrics_read(config), config)
        except (UnsupportedModelError, UnknownFeaturesError):  # `answers` tells them
            return False
        return not (self.frozen.states.is_closed and self.frozen.pictures.cache.is_closed)

    def forget(self) -> None:
        """Keep nothing in memory of the steps so far."""
        self.frozen.forget()

    def _answers(
        self, records: Sequence[Record], config: TrainingConfig, *, is_edited: bool
    ) -> AnswerTokens:
        self.frozen.recomputes = config.checkpoint_activations
        self.frozen.compiles = config.compile_layers
        if not self.is_plain:
            try:
                return self._shared(records, config, is_edited=is_edited)
            except (UnsupportedModelError, UnknownFeaturesError) as reason:
                logger.warning("every loss runs a whole forward of its own: %s", reason)
                self.is_plain = True
        return plain_answers(self._editor, records, config, is_edited=is_edited)

    def _shared(
        self, records: Sequence[Record], config: TrainingConfig, *, is_edited: bool
    ) -> AnswerTokens:
        wanted = [metric for metric in METRICS if config.weights[metric]]
        locality = [metric for metric in wanted if metric not in IN_SCOPE]
        groups = self._groups(records, metrics_read(config), config)
        projected = projected_requests(self._editor, groups) if is_edited else {}
        head = head_of(self._editor.backbone.model)
        device = groups[0].frozen.states.device
        outside = torch.tensor([METRICS.index(metric) for metric in locality], device=device)
        found = []
        for group in groups:
            rows = group.rows(wanted)
            if not rows:
                continue
            upper = group.frozen.take(rows)
            at, expected, metric = answers(group, upper.rows)
            changes = self._changes(group, upper, projected) if is_edited else ({}, 0)
            logits = head(upper.final_states(at, *changes)).float()
            losses = functional.cross_entropy(logits, expected, reduction="none")
            hits = logits.argmax(-1) == expected
            others = group.rows(locality)
            if others:
                kept = torch.isin(metric, outside)
                with torch.no_grad():
                    unedited = group.frozen.take(others)
                    plain = head(unedited.final_states(answers(group, unedited.rows)[0]))
                after = logits[kept]
                losses = losses.masked_scatter(kept, token_divergence(plain, after))
                same = plain.float().argmax(-1) == after.argmax(-1)
                hits = hits.masked_scatter(kept, same)
            record = group.record[upper.rows, None].expand_as(at)[at]
            found.append(AnswerTokens(losses, hits, metric, record))
        return AnswerTokens.joined(found)

    def _groups(
        self, records: Sequence[Record], metrics: Sequence[str], config: TrainingConfig
    ) -> list[RowGroup]:
        """Return the rows of a step, once all shortcuts that the model does not bear are off."""
        folder = None
        if self._folder is not None and not self._is_checked:
            folder = StateFolder.of(self._folder, self._editor.backbone, self.first_layer)
            if folder.shortcuts is not None:
                self._keep_in(folder)
        try:
            groups = self._read(records, metrics, config)
        except UnshareableError as reason:
            self._without("shares", str(reason))
            groups = self._read(records, metrics, config)
        for shortcut in _SHORTCUTS:
            if self._is_checked or self._agrees(groups):
                break
            self._without(shortcut, "its logits are then not those of a whole forward")
            groups = self._read(records, metrics, config)
        if not self._is_checked and not self._agrees(groups):
            raise UnsupportedModelError("the logits differ from those of a whole forward")
        if folder is not None and not self._is_checked:
            folder.confirm({name: getattr(self.frozen, name) for name in _SHORTCUTS})
            self._keep_in(folder)
            groups = self._read(records, metrics, config)
        self._is_checked = True
        return groups

    def _keep_in(self, folder: StateFolder) -> None:
        """Keep states in a folder whose shortcuts are known to be right."""
        for name in _SHORTCUTS:
            setattr(self.frozen, name, (folder.shortcuts or {}).get(name, False))
        self.frozen.keep_in(folder)
        self._is_checked = True

    def _without(self, shortcut: str, reason: str) -> None:
        logger.warning("training runs without a shortcut (%s): %s", shortcut, reason)
        setattr(self.frozen, shortcut, False)
        self.frozen.forget_states()

    def _read(
        self, records: Sequence[Record], metrics: Sequence[str], config: TrainingConfig
    ) -> list[RowGroup]:
        rows = [
            Row(metric, place, record.queries[METRICS.index(metric)])
            for metric in metrics
            for place, record in enumerate(records)
        ]
        groups = []
        prepared = dict(self.prepared)
        if not prepared:
            self.frozen.read([row.query for row in rows], prepared)
        for chosen in self.frozen.together(rows, prepared):
            names, places, queries = zip(*chosen, strict=True)
            ends = [config.end_of_answer and name in IN_SCOPE for name in names]
            owners = places if queries[0].shown else None
            frozen = self.frozen.run(queries, ends, owners, dict(prepared))
            device = frozen.states.device
            numbers = torch.tensor([METRICS.index(name) for name in names], device=device)
            record = torch.tensor(places, device=device)
            groups.append(RowGroup(frozen, numbers, record, queries, ends, names))
        return groups

    @torch.no_grad()
    def _agrees(self, groups: Sequence[RowGroup]) -> bool:
        """Return whether the upper layers, run alone, give what the model's own forward gives."""
        head = head_of(self._editor.backbone.model)
        for group in groups:
            upper = group.frozen.take(range(len(group.metrics)))
            got = head(upper.final_states(answers(group, upper.rows)[0]))
            expected = self._whole(group)
            bound = _TOLERANCE if got.dtype == expected.dtype == torch.float32 else 5e-2
            scale = float(expected.abs().amax())
            if not torch.allclose(got.float(), expected.float(), rtol=0, atol=bound * scale):
                return False
        return True

    def _whole(self, group: RowGroup) -> Tensor:
        """Return the logits of the model's own forward at the answers of a group, [n, v]."""
        encoder = self._editor.encoder
        encoded = encoder.encode(group.queries)
        batch = encoder.assemble(
            group.queries,
            [encoder.tokenised(query)[0] for query in group.queries],
            {n: v for n, v in encoded.inputs.items() if n not in PER_TOKEN},
            ends=group.ends,
        )
        backbone = self._editor.backbone
        at = functional.pad(batch.labels[:, 1:] != IGNORED, (0, 1))
        return logits_at(backbone, at, partial(backbone.model, **batch.inputs, use_cache=False))

    def _changes(
        self, group: RowGroup, upper: UpperLayers, projected: dict[Modality, ProjectedEdit]
    ) -> tuple[dict[int, LayerEdit], int]:
        """Return the edits of layers, and how many slots the first of them leaves as they were."""
        adapters, layout = self._editor.adapters, group.frozen.batch.layout
        record = group.record[upper.first]
        everywhere = range(len(record))
        positions = {
            name: upper.marked(adapters.positions(name, layout)) for name in adapters.modalities
        }
        answered = upper.shared.pack(layout.answered)
        chosen = {name: edit.select(record.to(edit.device)) for name, edit in projected.items()}

        def change(layer: int, hidden: Tensor) -> Tensor:
            for name in adapters.modalities:
                if adapters.layer_of[name] == layer:
                    hidden = add_at(
                        hidden, positions[name], adapters[name], chosen[name], everywhere, answered
                    )
            return hidden

        layers = {name: adapters.layer_of[name] for name in positions}
        edits: dict[int, LayerEdit] = {n: partial(change, n) for n in layers.values()}
        is_text = [name for name in layers if layers[name] == self.first_layer] == ["text"]
        return edits, upper.shared.before if is_text else 0


def metrics_read(config: TrainingConfig) -> list[str]:
    """Return what is read of a record: the request, and what has a weight."""
    wanted = [metric for metric in METRICS if getattr(config, f"{metric}_weight")]
    return ["reliability", *(metric for metric in wanted if metric != "reliability")]
