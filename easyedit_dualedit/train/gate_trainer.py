"""Calibrates the gate on training records, and trains the projection of the `learned` kind.

No target token takes part in what a gate learns: neither the last prompt token nor the image tokens
can depend on what comes after them. Training asks what a memory of many edits asks: which of all
the edits of a large batch is meant, or none.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import (
    IN_SCOPE,
    OTHER_IMAGE,
    OTHER_QUESTION,
    SCOPE,
    partners_of,
    scope_queries,
)
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GateKind
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import EDIT_COUNTS, GateProjection, vision_mean
from easyedit_dualedit.method.gate_calibration import Calibration, ScopeSample, set_thresholds
from easyedit_dualedit.model.answers import first_answer_tokens
from easyedit_dualedit.model.hooks import record, undisturbed
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_thresholds import ScopedSimilarities, thresholds_by_count
from easyedit_dualedit.train.held_out import divided, unshared

logger = logging.getLogger(__name__)

CALIBRATION_RECORDS = 500
"""Records that a gate is calibrated on, at most."""

GATE_RECORDS = 6000
"""Records that a `learned` gate is trained on, at most: their states are held in memory."""

HELD_OUT = 1000
"""Records that the thresholds of a `learned` gate are chosen on, at most, and a sixth of all."""

_BATCH = 1024
"""Edits that a query is told apart from in one step."""
_LEARNING_RATE = 2e-3
_WARM_UP = 0.1
_LARGEST_NORM = 1.0
_FIRST_SCALE = 20.0
_FIRST_NONE = 0.7
_FEWEST = 4
_REQUEST = METRICS[0]


@dataclass(frozen=True)
class ScopeStates:
    """Gate states of the queries of some records, and which of them may teach.

    Shapes: n records, d hidden size.
    """

    gate: Mapping[str, Tensor]
    """Kind of query -> states of the last prompt tokens, [n, d]."""
    vision: Mapping[str, Tensor]
    """Kind of query -> means of the image tokens, [n, d]; zeros without a picture."""
    counts: dict[str, Tensor]
    """Kind of query -> True where it surely is in or out of scope, bool [n]."""
    partners: Tensor
    """Place of the record whose picture `other_image` shows, long [n], -1 if it is not there: its
    edit may rightly answer."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.partners)

    def select(self, rows: Tensor) -> "ScopeStates":
        """Return the states of some records, of which each is there once.

        Args:
            rows: places of the records, on any device, long [r].
        """
        rows = rows.to(self.partners.device)
        place = torch.full((len(self),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        partners = self.partners[rows]
        return ScopeStates(
            {kind: states[rows] for kind, states in self.gate.items()},
            {kind: states[rows] for kind, states in self.vision.items()},
            {kind: mask[rows] for kind, mask in self.counts.items()},
            torch.where(partners >= 0, place[partners.clamp(min=0)], -1),
        )


@torch.no_grad()
def calibrate(
    editor: DualEditor, records: Sequence[Record], batch_size: int = 16
) -> dict[GateKind, Calibration]:
    """Calibrate the kinds that compare states as they are; return how each does on the records.

    In scope are each edit's request and rephrases; out of scope are its locality queries. The
    first `CALIBRATION_RECORDS` are used.

    Raises:
        CalibrationError: if there are no records.
    """
    if not records:
        raise CalibrationError("no records to calibrate the gate on; give at least one")
    chosen = records[:CALIBRATION_RECORDS]
    gate, last = {}, {}
    for metric in METRICS:
        gate[metric], last[metric], _ = gate_states(
            editor, metric_queries(chosen, metric), batch_size
        )
    count = len(METRICS)
    in_scope = torch.tensor([metric in IN_SCOPE for metric in METRICS])
    return set_thresholds(
        editor.gate,
        ScopeSample(
            query_gate=torch.cat([gate[metric] for metric in METRICS]),
            query_last=torch.cat([last[metric] for metric in METRICS]),
            edit_gate=gate["reliability"].repeat(count, 1),
            edit_last=last["reliability"].repeat(count, 1),
            in_scope=in_scope.repeat_interleave(len(chosen)).to(gate["reliability"].device),
        ),
    )


def train_gate(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    progress: bool = True,
) -> Calibration:
    """Train the projection of a `learned` gate, calibrate it, and return how it does.

    A sixth of the records, about `HELD_OUT` at most, teaches nothing: thresholds for one edit and
    for many come from it, and the rates that are returned, which are those for one edit. Neither
    their pictures nor their questions teach, as far as the data allow; see `held_out`.

    Raises:
        CalibrationError: if there are too few records to hold any out.
    """
    if len(records) < _FEWEST:
        raise CalibrationError(
            f"{len(records)} records are too few to train a gate on; give at least {_FEWEST}, or"
            " set gate_steps to 0"
        )
    records = records[:GATE_RECORDS]
    held_out = max(1, min(HELD_OUT, len(records) // 6))
    division = divided(records, held_out)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        teaching = collect(editor, division.teaching, seed=config.seed, progress=progress)
        apart = collect(editor, division.held_out, seed=config.seed, progress=progress)
        for kind in (metric for metric in METRICS if metric not in IN_SCOPE):
            queries = (
                metric_queries(part, kind) for part in (division.teaching, division.held_out)
            )
            used = unshared(*queries)
            for states, mask in zip((teaching, apart), used, strict=True):
                states.counts[kind] = torch.tensor(mask, device=states.partners.device)
        _fit(editor, teaching, config, progress=progress)
    return _calibrate_projection(editor, apart)


@torch.no_grad()
def collect(
    editor: DualEditor,
    records: Sequence[Record],
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> ScopeStates:
    """Return the gate states of every kind of query of `SCOPE`.

    Another record's question may mean the same as the edit's own. It counts as out of scope only
    where the unedited model begins to answer it otherwise.
    """
    queries = scope_queries(records, seed=seed)
    gate, vision = {}, {}
    for kind in tqdm(SCOPE, desc="reading states", unit="kind", disable=not progress):
        gate[kind], _, vision[kind] = gate_states(editor, queries[kind], batch_size)
    everywhere = torch.ones(len(records), dtype=torch.bool, device=gate["reliability"].device)
    counts = dict.fromkeys(SCOPE, everywhere)
    own = first_answer_tokens(editor.encoder, queries["reliability"], batch_size)
    other = first_answer_tokens(editor.encoder, queries[OTHER_QUESTION], batch_size)
    partners = torch.tensor(partners_of(len(records), seed=seed), device=everywhere.device)
    # A record that is alone has no other to take a picture or a question from.
    has_partner = partners != torch.arange(len(records), device=partners.device)
    counts[OTHER_IMAGE] = has_partner
    counts[OTHER_QUESTION] = (own != other).to(everywhere.device) & has_partner
    return ScopeStates(gate, vision, counts, partners)


def gate_states(
    editor: DualEditor, queries: Sequence[Query], batch_size: int = 32
) -> tuple[Tensor, ...]:
    """Return states of last prompt tokens, of last tokens, and means of image tokens, [n, d].

    They lie where the gate does, whichever device the layer is on.
    """
    layer, device = editor.config.text_layer, editor.gate.mean.device
    batches: list[tuple[Tensor, ...]] = []
    for start in range(0, len(queries), batch_size):
        batch = editor.encoder.encode(queries[start : start + batch_size])
        backbone = editor.backbone
        with undisturbed(backbone.model), record(backbone.layers, [layer], stop=True) as seen:
            backbone.model(**batch.inputs, use_cache=False)
        hidden = seen[layer].float()
        rows = torch.arange(batch.size, device=hidden.device)
        batches.append(
            (
                hidden[rows, batch.layout.gate.to(hidden.device)],
                hidden[rows, batch.layout.last.to(hidden.device)],
                vision_mean(hidden, batch.layout.vision),
            )
        )
    return tuple(torch.cat(parts).to(device) for parts in zip(*batches, strict=True))


def _fit(
    editor: DualEditor, states: ScopeStates, config: TrainingConfig, *, progress: bool
) -> None:
    projection = editor.gate.projection
    projection.reset()  # so that the result depends on the seed alone
    device = editor.gate.mean.device
    scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE), device=device))
    none = nn.Parameter(torch.tensor(_FIRST_NONE, device=device))
    optimiser = torch.optim.Adam([*projection.parameters(), scale, none], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _pace(step, config.gate_steps)
    )
    steps = tqdm(range(config.gate_steps), desc="gate", unit="step", disable=not progress)
    for _ in steps:
        rows = torch.randperm(len(states))[:_BATCH]
        loss = _routing_loss(projection, states.select(rows), scale.exp(), none)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(projection.parameters(), _LARGEST_NORM)
        optimiser.step()
        schedule.step()
        steps.set_postfix(loss=f"{float(loss.detach()):.4f}")


def _routing_loss(
    projection: GateProjection, batch: ScopeStates, scale: Tensor, none: Tensor
) -> Tensor:
    """Return the mean cross-entropy of finding a query's own edit among all of a batch, or none.

    The logits of a query are its scaled cosines to every edit, and one learned number that stands
    for none of them.
    """
    edits = projection(batch.gate[_REQUEST], batch.vision[_REQUEST])
    count = len(edits)
    rows = torch.arange(count, device=edits.device)
    losses = []
    for kind in SCOPE:
        own = kind == _REQUEST
        queries = edits if own else projection(batch.gate[kind], batch.vision[kind])
        logits = scale * (queries @ edits.T)  # [n, n]
        if kind in IN_SCOPE and not own:
            # Which query is meant by an edit, too.
            losses.append(functional.cross_entropy(logits.T, rows) / 2)
        if kind == OTHER_IMAGE:
            shown = batch.partners
            logits = logits.masked_fill((rows == shown[:, None]), -math.inf)
        logits = torch.cat([logits, (scale * none).expand(count, 1)], 1)
        label = rows if kind in IN_SCOPE else torch.full_like(rows, count)
        loss = functional.cross_entropy(logits, label, reduction="none")[batch.counts[kind]]
        if len(loss):
            losses.append(loss.mean())
    return torch.stack(losses).sum() / len(SCOPE)


def _pace(step: int, steps: int) -> float:
    """Return the share of the step size: up in a line, then down along a cosine."""
    warm = max(1, int(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _calibrate_projection(editor: DualEditor, states: ScopeStates) -> Calibration:
    projection = editor.gate.projection
    edits = projection(states.gate[_REQUEST], states.vision[_REQUEST])
    kinds = {
        kind: ScopedSimilarities(
            kind in IN_SCOPE,
            projection(states.gate[kind], states.vision[kind]) @ edits.T,
            states.counts[kind],
            states.partners if kind == OTHER_IMAGE else None,
        )
        for kind in SCOPE
    }
    calibrations = thresholds_by_count(
        list(kinds.values()), EDIT_COUNTS, false_open_rate=editor.config.gate.false_open_rate
    )
    thresholds = [calibrations[count].threshold for count in EDIT_COUNTS]
    projection.thresholds.copy_(torch.tensor(thresholds))
    for count, each in calibrations.items():
        logger.info(
            "the learned gate among %d edits: threshold %.3f, opens rightly for %.4f, wrongly for"
            " %.4f",
            count,
            each.threshold,
            each.true_open_rate,
            each.false_open_rate,
        )
    single = calibrations[EDIT_COUNTS[0]]
    return Calibration(single.threshold, single.true_open_rate, single.false_open_rate)
