"""Calibrates the gate on training records, and trains the projection of the `learned` kind.

No target token takes part in what a gate learns: a state of the last prompt token cannot depend on
what comes after it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.answers import first_answer_tokens
from easyedit_dualedit.batch import Query
from easyedit_dualedit.config import GateKind, TrainingConfig
from easyedit_dualedit.editor import DualEditor
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.gate import Calibration, ScopeSample, best_threshold
from easyedit_dualedit.hooks import record
from easyedit_dualedit.records import METRICS, Record, queries_of
from easyedit_dualedit.scope import (
    IN_SCOPE,
    OTHER_QUESTION,
    SCOPE,
    scope_queries,
)

logger = logging.getLogger(__name__)

CALIBRATION_RECORDS = 500
"""Records that a gate is calibrated on, at most."""

GATE_RECORDS = 6000
"""Records that a `learned` gate is trained on, at most: their states are held in memory."""

_BATCH = 256
_LEARNING_RATE = 2e-3
_FEWEST = 4


@dataclass(frozen=True)
class ScopeStates:
    """Gate states of the queries of some records, and which of them may teach.

    Shapes: n records, d hidden size.
    """

    gate: Mapping[str, Tensor]
    """Kind of query -> states of the last prompt tokens, [n, d]."""
    counts: Mapping[str, Tensor]
    """Kind of query -> True where it surely is in or out of scope, bool [n]."""

    def select(self, rows: Tensor) -> "ScopeStates":
        """Return the states of some records."""
        return ScopeStates(
            {kind: states[rows] for kind, states in self.gate.items()},
            {kind: mask[rows] for kind, mask in self.counts.items()},
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
        gate[metric], last[metric] = _states(editor, queries_of(chosen, metric), batch_size)
    count = len(METRICS)
    in_scope = torch.tensor([metric in IN_SCOPE for metric in METRICS])
    return editor.gate.calibrate(
        ScopeSample(
            query_gate=torch.cat([gate[metric] for metric in METRICS]),
            query_last=torch.cat([last[metric] for metric in METRICS]),
            edit_gate=gate["reliability"].repeat(count, 1),
            edit_last=last["reliability"].repeat(count, 1),
            in_scope=in_scope.repeat_interleave(len(chosen)).to(gate["reliability"].device),
        )
    )


def train_gate(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    progress: bool = True,
) -> Calibration:
    """Train the projection of a `learned` gate, calibrate it, and return how it does.

    The last tenth of the records, at most `CALIBRATION_RECORDS`, is held out: the threshold and
    the rates that are returned come from it.

    Raises:
        CalibrationError: if there are too few records to hold any out.
    """
    if len(records) < _FEWEST:
        raise CalibrationError(
            f"{len(records)} records are too few to train a gate on; give at least {_FEWEST}, or"
            " set gate_steps to 0"
        )
    records = records[:GATE_RECORDS]
    held_out = max(1, min(CALIBRATION_RECORDS, len(records) // 10))
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        states = collect(editor, records, seed=config.seed, progress=progress)
        training = states.select(torch.arange(len(records) - held_out))
        _fit(editor, training, config, progress=progress)
    return _calibrate_projection(
        editor, states.select(torch.arange(len(records) - held_out, len(records)))
    )


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
    gate = {}
    for kind in tqdm(SCOPE, desc="reading states", unit="kind", disable=not progress):
        gate[kind], _ = _states(editor, queries[kind], batch_size)
    everywhere = torch.ones(len(records), dtype=torch.bool, device=gate["reliability"].device)
    counts = dict.fromkeys(SCOPE, everywhere)
    own = first_answer_tokens(editor.encoder, queries["reliability"], batch_size)
    other = first_answer_tokens(editor.encoder, queries[OTHER_QUESTION], batch_size)
    counts[OTHER_QUESTION] = own != other
    return ScopeStates(gate, counts)


def _states(editor: DualEditor, queries: Sequence[Query], batch_size: int) -> tuple[Tensor, Tensor]:
    layer = editor.config.text_layer
    gate, last = [], []
    for start in range(0, len(queries), batch_size):
        batch = editor.encoder.encode(queries[start : start + batch_size])
        with record(editor.backbone.layers, [layer], stop=True) as seen:
            editor.backbone.model(**batch.inputs, use_cache=False)
        hidden = seen[layer].float()
        rows = torch.arange(batch.size, device=hidden.device)
        gate.append(hidden[rows, batch.layout.gate.to(hidden.device)])
        last.append(hidden[rows, batch.layout.last.to(hidden.device)])
    return torch.cat(gate), torch.cat(last)


def _fit(
    editor: DualEditor, states: ScopeStates, config: TrainingConfig, *, progress: bool
) -> None:
    projection = editor.gate.projection
    for layer in projection.layers:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()  # so that the result depends on the seed alone
    scale = nn.Parameter(torch.tensor(10.0, device=editor.gate.mean.device))
    offset = nn.Parameter(torch.tensor(0.5, device=editor.gate.mean.device))
    optimiser = torch.optim.Adam([*projection.parameters(), scale, offset], lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.gate_steps)
    count = len(states.gate["reliability"])
    steps = tqdm(range(config.gate_steps), desc="gate", unit="step", disable=not progress)
    for _ in steps:
        rows = torch.randperm(count)[:_BATCH].to(editor.gate.mean.device)
        batch = states.select(rows)
        keys = {kind: projection(batch.gate[kind]) for kind in SCOPE}
        loss = _contrast(keys, batch.counts, scale, offset)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        steps.set_postfix(loss=f"{float(loss.detach()):.4f}")


def _contrast(
    keys: Mapping[str, Tensor], counts: Mapping[str, Tensor], scale: Tensor, offset: Tensor
) -> Tensor:
    """Return the logistic loss: each edit against its own queries, and against all others'."""
    edits = keys["reliability"]
    own = ~torch.eye(len(edits), dtype=torch.bool, device=edits.device)
    losses = []
    for kind, queries in keys.items():
        logits = scale * (queries @ edits.T - offset)
        diagonal = logits.diagonal()
        label = torch.full_like(diagonal, float(kind in IN_SCOPE))
        pairs = functional.binary_cross_entropy_with_logits(diagonal, label, reduction="none")
        if bool(counts[kind].any()):
            losses.append(pairs[counts[kind]].mean())
        others = logits[own]
        if len(others):
            losses.append(functional.softplus(others).mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def _calibrate_projection(editor: DualEditor, states: ScopeStates) -> Calibration:
    projection = editor.gate.projection
    edits = projection(states.gate["reliability"])
    similarity = {
        kind: (projection(gate) * edits).sum(-1)[states.counts[kind]]
        for kind, gate in states.gate.items()
    }
    inside = torch.cat([similarity[kind] for kind in IN_SCOPE])
    outside = torch.cat([found for kind, found in similarity.items() if kind not in IN_SCOPE])
    allowed = int(editor.config.gate.false_open_rate * len(outside))
    allowed = min(allowed, len(outside) - 1)
    ordered = outside.sort(descending=True).values
    # Just above the highest query out of scope that must stay closed.
    strict = float(torch.nextafter(ordered[allowed], torch.tensor(2.0, device=ordered.device)))
    threshold = max(strict, best_threshold(inside, outside))
    projection.threshold.fill_(threshold)
    for kind, found in similarity.items():
        share = float((found >= threshold).float().mean()) if len(found) else 0.0
        logger.info("the learned gate opens for %.3f of %s", share, kind)
    return Calibration(
        threshold,
        float((inside >= threshold).float().mean()),
        float((outside >= threshold).float().mean()),
    )
