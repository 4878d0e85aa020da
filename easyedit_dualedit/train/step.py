"""The losses of one training step in little time: the frozen part of the model runs once for all.

`plain_losses` says what the losses are; here is how the same numbers cost less.

The queries of a step go up to the first edited layer together, without autograd, each picture once
through the vision tower. Queries of one edit about one picture share their beginning. From there
the request's rows go on to the deeper edited layer for the edit signal, the localities' rows to the
end unedited, and all rows to the end edited; the lm_head sees only positions that predict an
answer, and so does most of the last layer.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.adapter import ProjectedEdit, add_at, packed
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.hooks import LayerEdit
from easyedit_dualedit.model.inputs import IGNORED
from easyedit_dualedit.model.picture_features import UnknownFeaturesError
from easyedit_dualedit.model.prompts import PER_TOKEN
from easyedit_dualedit.train.config import CACHE_BYTES, TrainingConfig
from easyedit_dualedit.train.frozen_part import FrozenPart, UnsupportedModelError
from easyedit_dualedit.train.losses import StepLosses
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.processes import Processes
from easyedit_dualedit.train.row_group import Row, RowGroup, answers
from easyedit_dualedit.train.shared_rows import UnshareableError
from easyedit_dualedit.train.state_folder import StateFolder
from easyedit_dualedit.train.upper_layers import UpperLayers, head_of

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
        self._first = min(adapters.layer_of[name] for name in adapters.modalities)
        self.frozen = FrozenPart(
            editor.encoder, self._first, budget=budget, state_budget=state_budget
        )
        self._folder = folder
        self._is_checked = False
        self.is_plain = False
        """Whether the model cannot be run from a layer on, so that whole forwards run."""

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

    def losses(self, records: Sequence[Record], config: TrainingConfig) -> StepLosses:
        """Return the losses of one batch of edits, with the gate held open."""
        if config.autocast == "none":  # whatever holds outside
            return self._losses(records, config)
        with torch.autocast(self._editor.backbone.device.type, torch.bfloat16):
            return self._losses(records, config)

    def read_again(self, records: Sequence[Record], config: TrainingConfig) -> None:
        """Keep of a batch what `losses` would keep, so that a continued training goes on alike.

        States differ in the last bits with the rows that they are computed beside.
        """
        casts = torch.autocast(
            self._editor.backbone.device.type, torch.bfloat16, enabled=config.autocast != "none"
        )
        with casts, suppress(UnsupportedModelError, UnknownFeaturesError):  # `losses` tells them
            self._groups(records, _metrics(config), config)

    def forget(self) -> None:
        """Keep nothing in memory of the steps so far."""
        self.frozen.forget()

    def _losses(self, records: Sequence[Record], config: TrainingConfig) -> StepLosses:
        self.frozen.recomputes = config.checkpoint_activations
        self.frozen.compiles = config.compile_layers
        if not self.is_plain:
            try:
                return self._shared(records, config)
            except (UnsupportedModelError, UnknownFeaturesError) as reason:
                logger.warning("every loss runs a whole forward of its own: %s", reason)
                self.is_plain = True
        return plain_losses(self._editor, records, config)

    def _shared(self, records: Sequence[Record], config: TrainingConfig) -> StepLosses:
        weights = {metric: float(getattr(config, f"{metric}_weight")) for metric in METRICS}
        wanted = [metric for metric in METRICS if weights[metric]]
        locality = [metric for metric in wanted if metric not in IN_SCOPE]
        groups = self._groups(records, _metrics(config), config)
        projected = self._project(groups)
        head = head_of(self._editor.backbone.model)
        device = groups[0].frozen.states.device
        sums = torch.zeros(len(METRICS), device=device)
        counts = torch.zeros(len(METRICS), device=device)
        right = torch.zeros(len(METRICS), device=device)
        outside = torch.tensor([METRICS.index(metric) for metric in locality], device=device)
        for group in groups:
            rows = group.rows(wanted)
            if not rows:
                continue
            upper = group.frozen.take(rows)
            at, expected, metric = answers(group, upper.rows)
            hidden = upper.final_states(at, self._changes(group, upper, projected))
            logits = head(hidden).float()
            losses = functional.cross_entropy(logits, expected, reduction="none")
            hits = logits.argmax(-1) == expected
            others = group.rows(locality)
            if others:
                kept = torch.isin(metric, outside)
                with torch.no_grad():
                    unedited = group.frozen.take(others)
                    plain = head(unedited.final_states(answers(group, unedited.rows)[0]))
                    before = functional.log_softmax(plain.float(), -1)
                after = functional.log_softmax(logits[kept], -1)
                divergence = (before.exp() * (before - after)).sum(-1)
                losses = losses.masked_scatter(kept, divergence)
                hits = hits.masked_scatter(kept, before.argmax(-1) == after.argmax(-1))
            right = right.index_add(0, metric, hits.float())
            sums = sums.index_add(0, metric, losses)
            counts = counts.index_add(0, metric, torch.ones_like(losses))
        return Processes.current().losses(sums, counts, right, weights)

    def _groups(
        self, records: Sequence[Record], metrics: Sequence[str], config: TrainingConfig
    ) -> list[RowGroup]:
        """Return the rows of a step, once all shortcuts that the model does not bear are off."""
        folder = None
        if self._folder is not None and not self._is_checked:
            folder = StateFolder.of(self._folder, self._editor.backbone, self._first)
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
            Row(metric, place, query)
            for metric in metrics
            for place, query in enumerate(metric_queries(records, metric))
        ]
        groups = []
        for chosen in self._grouped(rows):
            names, places, queries = zip(*chosen, strict=True)
            ends = [config.end_of_answer and name in IN_SCOPE for name in names]
            owners = places if queries[0].shown else None
            frozen = self.frozen.run(queries, ends, owners)
            device = frozen.states.device
            numbers = torch.tensor([METRICS.index(name) for name in names], device=device)
            record = torch.tensor(places, device=device)
            groups.append(RowGroup(frozen, numbers, record, queries, ends, names))
        return groups

    def _grouped(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Return the rows of each forward.

        Rows that share their beginning are longer than others, which would be padded to them.
        """
        seeing = [row for row in rows if row.query.shown]
        # Told apart by object: a look at what they show would take longer than it could save.
        shown = [
            (row.record, *(p if isinstance(p, Path) else id(p) for p in row.query.shown))
            for row in seeing
        ]
        count = Counter(shown)
        shared = [self.frozen.shares and count[each] > 1 for each in shown]
        parts = [
            [
                row
                for row, is_shared in zip(seeing, shared, strict=True)
                if is_shared == shares and (row.query.video is not None) == moving
            ]
            for moving in (False, True)
            for shares in (True, False)
        ]
        parts.append([row for row in rows if not row.query.shown])
        return [part for part in parts if part]

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
        logits = self._editor.backbone.model(**batch.inputs, use_cache=False).logits
        chosen: Tensor = logits[:, :-1][batch.labels[:, 1:] != IGNORED]
        return chosen

    def _project(self, groups: Sequence[RowGroup]) -> dict[Modality, ProjectedEdit]:
        """Return the edits of the requests of some records, projected, in the records' order."""
        adapters = self._editor.adapters
        layers = {adapters.layer_of[name] for name in adapters.modalities}
        records: list[Tensor] = []
        signals: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
        words: list[Tensor] = []
        with torch.no_grad():
            for group in groups:
                chosen = group.rows(["reliability"])
                if not chosen:
                    continue
                upper = group.frozen.take(chosen)
                batch = group.frozen.batch.select(upper.rows)
                # An end-of-turn token is asked for, but carries no edit.
                ended = (batch.labels != IGNORED) & ~batch.target
                layout = replace(batch.layout, real=batch.layout.real & ~ended)
                batch = replace(batch, layout=layout)
                carrying = self._editor.carrying(batch)
                records.append(group.record[upper.rows])
                words.append(packed(self._editor.words(batch)[..., None], carrying)[0])
                for layer, signal in signals.items():
                    signal.append(packed(upper.states_at(layer, carrying), carrying))
        order = torch.cat(records).argsort()
        projected = {}
        width = max(each.shape[1] for each in words)
        ids = torch.cat([_widened(each, width) for each in words])[order]
        vectors = adapters.word_vectors(ids[..., 0])
        for name in adapters.modalities:
            signal = signals[adapters.layer_of[name]]
            states = torch.cat([_widened(each, width) for each, _ in signal])[order]
            masks = [_widened(each[..., None], width)[..., 0] for _, each in signal]
            mask = torch.cat(masks)[order]
            projected[name] = adapters[name].project(states, mask, vectors)
        return projected

    def _changes(
        self, group: RowGroup, upper: UpperLayers, projected: dict[Modality, ProjectedEdit]
    ) -> dict[int, LayerEdit]:
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

        return {adapters.layer_of[n]: partial(change, adapters.layer_of[n]) for n in positions}


def _metrics(config: TrainingConfig) -> list[str]:
    """Return what is read of a record: the request, and what has a weight."""
    wanted = [metric for metric in METRICS if getattr(config, f"{metric}_weight")]
    return ["reliability", *(metric for metric in wanted if metric != "reliability")]


def _widened(values: Tensor, width: int) -> Tensor:
    """Return values [b, e, d] with zeros, or False, up to a width, [b, width, d]."""
    return functional.pad(values, (0, 0, 0, width - values.shape[1]))
