"""The losses of one training step, the frozen part of the model run once for all of them.

The queries of a step go up to the first edited layer together, without autograd, each picture once
through the vision tower. Queries of one edit about one picture share their beginning. From there
the request's rows go on to the deeper edited layer for the edit signal, the localities' rows to the
end unedited, and all rows to the end edited; the lm_head sees only positions that predict an
answer, and so does most of the last layer.
"""

import inspect
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.method.active_edits import EditSignal, packed
from easyedit_dualedit.method.adapter import ProjectedEdit, add_at
from easyedit_dualedit.method.config import CACHE_BYTES, Modality, TrainingConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.encoder import PER_TOKEN
from easyedit_dualedit.model.hooks import LayerEdit
from easyedit_dualedit.model.inputs import IGNORED, Batch, Query
from easyedit_dualedit.train.continued import Started, Taken, head_of
from easyedit_dualedit.train.frozen_part import Prefix, UnsupportedModelError
from easyedit_dualedit.train.losses import answer_cross_entropy, answer_divergence, answer_logits
from easyedit_dualedit.train.picture_features import UnknownFeaturesError
from easyedit_dualedit.train.processes import Processes
from easyedit_dualedit.train.shared_rows import UnshareableError
from easyedit_dualedit.train.state_folder import StateFolder

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-4
_SHORTCUTS = ("shares", "trims")


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step by metric, unweighted, in nats; and their weighted sum."""

    total: Tensor
    """Among several processes, this one's part of it: its gradients are to be added up."""
    by_metric: dict[str, float]
    accuracy: dict[str, float]
    """Share of answer tokens that the edited model finds likeliest, 0 to 1, by metric; of metrics
    out of scope, share of positions at which it finds the same likeliest as the unedited one."""


@dataclass(frozen=True)
class _Group:
    """Rows of one forward: those with pictures, or those without."""

    started: Started
    metric: Tensor
    """Index in METRICS of each row, long [b]."""
    record: Tensor
    """Index of the record of each row, long [b]."""
    queries: Sequence[Query]
    ends: Sequence[bool]
    metrics: Sequence[str]
    """Metric of each row."""

    def rows(self, metrics: Sequence[str]) -> list[int]:
        """Return the rows of some metrics."""
        return [row for row, metric in enumerate(self.metrics) if metric in metrics]


class _Row(NamedTuple):
    metric: str
    record: int
    query: Query


class SharedSteps:
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
        self.prefix = Prefix(editor.encoder, self._first, budget=budget, state_budget=state_budget)
        self._folder = folder
        self._is_checked = False
        self.is_plain = False
        """Whether the model cannot be continued from a layer, so that whole forwards run."""

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

    def _losses(self, records: Sequence[Record], config: TrainingConfig) -> StepLosses:
        self.prefix.recomputes = config.checkpoint_activations
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
        metrics = ["reliability", *(m for m in wanted if m != "reliability")]
        groups = self._groups(records, metrics, config)
        projected = self._project(groups)
        head = head_of(self._editor.backbone.model)
        device = groups[0].started.states.device
        sums = torch.zeros(len(METRICS), device=device)
        counts = torch.zeros(len(METRICS), device=device)
        right = torch.zeros(len(METRICS), device=device)
        outside = torch.tensor([METRICS.index(metric) for metric in locality], device=device)
        for group in groups:
            rows = group.rows(wanted)
            if not rows:
                continue
            taken = group.started.take(rows)
            at, expected, metric = _answers(group, taken.rows)
            hidden = taken.resume(at, self._changes(group, taken, projected))
            logits = head(hidden).float()
            losses = functional.cross_entropy(logits, expected, reduction="none")
            hits = logits.argmax(-1) == expected
            others = group.rows(locality)
            if others:
                kept = torch.isin(metric, outside)
                with torch.no_grad():
                    unedited = group.started.take(others)
                    plain = head(unedited.resume(_answers(group, unedited.rows)[0]))
                    before = functional.log_softmax(plain.float(), -1)
                after = functional.log_softmax(logits[kept], -1)
                divergence = (before.exp() * (before - after)).sum(-1)
                losses = losses.masked_scatter(kept, divergence)
                hits = hits.masked_scatter(kept, before.argmax(-1) == after.argmax(-1))
            right = right.index_add(0, metric, hits.float())
            sums = sums.index_add(0, metric, losses)
            counts = counts.index_add(0, metric, torch.ones_like(losses))
        return _combined(sums, counts, right, weights, Processes.current())

    def _groups(
        self, records: Sequence[Record], metrics: Sequence[str], config: TrainingConfig
    ) -> list[_Group]:
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
            folder.confirm({name: getattr(self.prefix, name) for name in _SHORTCUTS})
            self._keep_in(folder)
            groups = self._read(records, metrics, config)
        self._is_checked = True
        return groups

    def _keep_in(self, folder: StateFolder) -> None:
        """Keep states in a folder whose shortcuts are known to be right."""
        for name in _SHORTCUTS:
            setattr(self.prefix, name, (folder.shortcuts or {}).get(name, False))
        self.prefix.keep_in(folder)
        self._is_checked = True

    def _without(self, shortcut: str, reason: str) -> None:
        logger.warning("training runs without a shortcut (%s): %s", shortcut, reason)
        setattr(self.prefix, shortcut, False)
        self.prefix.forget_states()

    def _read(
        self, records: Sequence[Record], metrics: Sequence[str], config: TrainingConfig
    ) -> list[_Group]:
        rows = [
            _Row(metric, place, query)
            for metric in metrics
            for place, query in enumerate(metric_queries(records, metric))
        ]
        groups = []
        for chosen in self._parts(rows):
            names, places, queries = zip(*chosen, strict=True)
            ends = [config.end_of_answer and name in IN_SCOPE for name in names]
            owners = places if queries[0].pictures else None
            started = self.prefix.read(queries, ends, owners)
            device = started.states.device
            numbers = torch.tensor([METRICS.index(name) for name in names], device=device)
            record = torch.tensor(places, device=device)
            groups.append(_Group(started, numbers, record, queries, ends, names))
        return groups

    def _parts(self, rows: Sequence[_Row]) -> list[list[_Row]]:
        """Return the rows of each forward.

        Rows that share their beginning are longer than others, which would be padded to them.
        """
        seeing = [row for row in rows if row.query.pictures]
        # Told apart by object: a look at what they show would take longer than it could save.
        shown = [
            (row.record, *(p if isinstance(p, Path) else id(p) for p in row.query.pictures))
            for row in seeing
        ]
        count = Counter(shown)
        shared = [self.prefix.shares and count[each] > 1 for each in shown]
        parts = [
            [row for row, is_shared in zip(seeing, shared, strict=True) if is_shared],
            [row for row, is_shared in zip(seeing, shared, strict=True) if not is_shared],
            [row for row in rows if not row.query.pictures],
        ]
        return [part for part in parts if part]

    @torch.no_grad()
    def _agrees(self, groups: Sequence[_Group]) -> bool:
        """Return whether what is continued gives what the model's own forward gives."""
        head = head_of(self._editor.backbone.model)
        for group in groups:
            taken = group.started.take(range(len(group.metrics)))
            got = head(taken.resume(_answers(group, taken.rows)[0]))
            expected = self._whole(group)
            bound = _TOLERANCE if got.dtype == expected.dtype == torch.float32 else 5e-2
            scale = float(expected.abs().amax())
            if not torch.allclose(got.float(), expected.float(), rtol=0, atol=bound * scale):
                return False
        return True

    def _whole(self, group: _Group) -> Tensor:
        """Return the logits of the model's own forward at the answers of a group, [n, v]."""
        encoder = self._editor.encoder
        found = encoder.encode(group.queries)
        batch = encoder.assemble(
            group.queries,
            [encoder.tokenised(query)[0] for query in group.queries],
            {n: v for n, v in found.inputs.items() if n not in PER_TOKEN},
            ends=group.ends,
        )
        logits = self._editor.backbone.model(**batch.inputs, use_cache=False).logits
        chosen: Tensor = logits[:, :-1][batch.labels[:, 1:] != IGNORED]
        return chosen

    def _project(self, groups: Sequence[_Group]) -> dict[Modality, ProjectedEdit]:
        """Return the edits of the requests of some records, projected, in the records' order."""
        adapters = self._editor.adapters
        layers = {adapters.layer_of[name] for name in adapters.modalities}
        records: list[Tensor] = []
        signals: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
        with torch.no_grad():
            for group in groups:
                chosen = group.rows(["reliability"])
                if not chosen:
                    continue
                batch, taken = group.started.batch, group.started.take(chosen)
                rows = taken.rows
                layout, target = batch.layout.select(rows), batch.target[rows]
                # An end-of-turn token is asked for, but carries no edit.
                ended = (batch.labels[rows] != IGNORED) & ~target
                layout = replace(layout, real=layout.real & ~ended)
                carrying = self._editor.carrying(layout, target)
                records.append(group.record[rows])
                for layer, found in signals.items():
                    found.append(packed(taken.states_at(layer, carrying), carrying))
        order = torch.cat(records).argsort()
        projected = {}
        for name in adapters.modalities:
            found = signals[adapters.layer_of[name]]
            width = max(mask.shape[1] for _, mask in found)
            states = torch.cat([_widened(each, width) for each, _ in found])[order]
            mask = torch.cat([_widened(each[..., None], width)[..., 0] for _, each in found])[order]
            projected[name] = adapters[name].project(states, mask)
        return projected

    def _changes(
        self, group: _Group, taken: Taken, projected: dict[Modality, ProjectedEdit]
    ) -> dict[int, LayerEdit]:
        adapters = self._editor.adapters
        layout = group.started.batch.layout
        record = group.record[taken.first]
        everywhere = range(len(record))
        positions = {"text": taken.marked(layout.text), "vision": taken.marked(layout.vision)}
        chosen = {name: edit.select(record.to(edit.device)) for name, edit in projected.items()}

        def change(layer: int, hidden: Tensor) -> Tensor:
            for name in adapters.modalities:
                if adapters.layer_of[name] == layer:
                    hidden = add_at(
                        hidden, positions[name], adapters[name], chosen[name], everywhere
                    )
            return hidden

        layers = {adapters.layer_of[name] for name in adapters.modalities}
        return {layer: partial(change, layer) for layer in layers}


def _widened(values: Tensor, width: int) -> Tensor:
    """Return values [b, e, d] with zeros, or False, up to a width, [b, width, d]."""
    return functional.pad(values, (0, 0, 0, width - values.shape[1]))


def _answers(group: _Group, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where rows predict answer tokens, [r, s], and of each such place token and metric."""
    following = group.started.batch.labels[rows, 1:]
    answer = following != IGNORED
    metric = group.metric[rows, None].expand_as(answer)[answer]
    return functional.pad(answer, (0, 1)), following[answer], metric


def _combined(
    sums: Tensor, counts: Tensor, right: Tensor, weights: dict[str, float], processes: Processes
) -> StepLosses:
    """Return the losses of the batch of all processes, from this one's answer tokens.

    Args:
        sums: sum of the losses of the answer tokens of each of METRICS, [m].
        counts: their number, [m].
        right: how many of them are as they should be, [m].
        weights: metric -> weight; those of weight 0 are left out.
        processes: hold the other parts of the batch.
    """
    counts = processes.total(counts).clamp(min=1)
    means = sums / counts
    shares = right / counts
    values, hit_rates = processes.total(torch.stack([means.detach(), shares])).tolist()
    places = {metric: place for place, metric in enumerate(METRICS) if weights[metric]}
    return StepLosses(
        torch.stack([weights[metric] * means[place] for metric, place in places.items()]).sum(),
        {metric: values[place] for metric, place in places.items()},
        {metric: hit_rates[place] for metric, place in places.items()},
    )


def plain_losses(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig
) -> StepLosses:
    """Return the losses of one batch of edits by whole forwards, one for each purpose.

    What `SharedSteps` must equal, and what it falls back on.
    """
    signals = editor.read(metric_queries(records, "reliability"))
    weights = {metric: float(getattr(config, f"{metric}_weight")) for metric in METRICS}
    scope = [metric for metric in IN_SCOPE if weights[metric]]
    locality = [metric for metric in METRICS if metric not in IN_SCOPE and weights[metric]]
    losses: dict[str, Tensor] = {}
    right: dict[str, Tensor] = {}
    if scope:
        batch = _encode(editor, records, scope, end_of_answer=config.end_of_answer)
        logits = _edited_logits(editor, signals, batch, len(scope))
        parts = zip(scope, logits.chunk(len(scope)), batch.labels.chunk(len(scope)), strict=True)
        for metric, part, labels in parts:
            losses[metric] = answer_cross_entropy(part, labels)
            predicted, expected = answer_logits(part, labels)
            right[metric] = predicted.argmax(-1) == expected
    if locality:
        batch = _encode(editor, records, locality, end_of_answer=False)
        with torch.no_grad():
            plain = _logits(editor.backbone.model, batch)
        edited = _edited_logits(editor, signals, batch, len(locality))
        count = len(locality)
        for metric, before, after, labels in zip(
            locality,
            plain.chunk(count),
            edited.chunk(count),
            batch.labels.chunk(count),
            strict=True,
        ):
            losses[metric] = answer_divergence(before, after, labels)
            one, two = (answer_logits(logits, labels)[0].argmax(-1) for logits in (before, after))
            right[metric] = one == two
    nothing = next(iter(losses.values())).new_zeros(())
    counts = {metric: nothing + len(hits) for metric, hits in right.items()}
    return _combined(
        torch.stack([losses.get(m, nothing) * counts.get(m, nothing) for m in METRICS]),
        torch.stack([counts.get(m, nothing) for m in METRICS]),
        torch.stack([right[m].sum() + nothing if m in right else nothing for m in METRICS]),
        weights,
        Processes.current(),
    )


def _encode(
    editor: DualEditor, records: Sequence[Record], metrics: Sequence[str], *, end_of_answer: bool
) -> Batch:
    queries = [query for metric in metrics for query in metric_queries(records, metric)]
    return editor.encoder.encode(queries, end_of_answer=end_of_answer)


def _edited_logits(
    editor: DualEditor, signals: Sequence[EditSignal], batch: Batch, repeats: int
) -> Tensor:
    assignment = torch.arange(len(signals)).repeat(repeats)
    edited = editor.edited(signals, assignment=assignment, gate=editor.open_gate())
    return _logits(edited, batch, layout=batch.layout)


def _logits(model: Any, batch: Batch, **extra: Any) -> Tensor:
    # Rows are padded on the left, so the answers of all rows stand at the end.
    answer = batch.labels != IGNORED
    width = answer.shape[1] - int(answer.any(0).to(torch.uint8).argmax())
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extra["logits_to_keep"] = width + 1
    logits: Tensor = model(**batch.inputs, use_cache=False, **extra).logits
    return logits[:, -width - 1 :]
