"""Calibrates the gate on training records, and trains the projection of the `learned` kind.

No target token takes part in what a gate learns: neither the last prompt token nor the image tokens
can depend on what comes after them.
"""

import logging
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import torch

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.data.scope import IN_SCOPE, OTHER_IMAGE, SCOPE
from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.method.config import GateKind
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_calibration import Calibration, ScopeSample, set_thresholds
from easyedit_dualedit.method.gate_keys import EDIT_COUNTS, GateProjection
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_fit import FITTINGS, fit_projection
from easyedit_dualedit.train.gate_reading import GateStates, read_gate_states
from easyedit_dualedit.train.gate_thresholds import (
    CountCalibration,
    ScopedSimilarities,
    thresholds_by_count,
)
from easyedit_dualedit.train.held_out import Division, divided, unshared
from easyedit_dualedit.train.scope_states import ScopeQueries, ScopeStates
from easyedit_dualedit.train.text_keys import fit_text_keys

logger = logging.getLogger(__name__)

CALIBRATION_RECORDS = 500
"""Records that a gate is calibrated on, at most."""

GATE_RECORDS = 6000
"""Records that a `learned` gate is trained on, at most: their states are held in memory."""

HELD_OUT = 1000
"""Records that the thresholds of a `learned` gate are chosen on, at most, and a sixth of all."""

_FEWEST = 4
_REQUEST = METRICS[0]

Item = TypeVar("Item")


def make_gate(
    editor: DualEditor,
    records: Sequence[Record],
    config: TrainingConfig,
    *,
    progress: bool = True,
) -> dict[GateKind, Calibration]:
    """Calibrate every kind of gate, train the `learned` one, and return how each does.

    All queries of both are read together, so that a picture that several show is read once. It is
    what `calibrate` and then `train_gate` do, but for rounding.

    Args:
        editor: its gate is made anew; its adapters take no part.
        records: the first of them teach, as many as `records_for_gate` says.
        config: of the training; without `gate_steps` the projection stays as it is.
        progress: whether to show bars.

    Raises:
        CalibrationError: if there are no records, or too few to hold any out.
    """
    records = records_for_gate(records, config)
    chosen = _for_calibration(records)
    teaching = _Teaching.of(records, config) if config.gate_steps else None
    queries = _calibration_queries(chosen)
    first = [False] * len(queries)
    if teaching is not None:
        queries, first = queries + teaching.queries, first + teaching.first
    read = _read(editor, queries, first, config, progress)
    start = len(METRICS) * len(chosen)
    calibrations = _calibrate(editor, read.of(0, start), len(chosen))
    if teaching is not None:
        states = teaching.states(read.of(start, len(queries)))
        calibrations["learned"] = _trained(editor, *states, config, progress=progress)
    if editor.gate.projection.is_trained:
        fit_text_keys(editor, records, config, progress=progress)
    return calibrations


def records_for_gate(records: Sequence[Item], config: TrainingConfig) -> Sequence[Item]:
    """Return the records that teach a gate: the first `gate_records`.

    Unless that is set they are as many as the adapters were trained on, at least
    `CALIBRATION_RECORDS`: to read one takes less time than a training step of one. They are never
    more than `GATE_RECORDS`.
    """
    count = config.gate_records
    if count is None:
        trained_on = config.steps * config.accumulate * config.batch_size
        count = max(CALIBRATION_RECORDS, trained_on)
    return records[: min(count, GATE_RECORDS)]


@torch.no_grad()
def calibrate(
    editor: DualEditor, records: Sequence[Record], *, autocast: str = "none"
) -> dict[GateKind, Calibration]:
    """Calibrate the kinds that compare states as they are; return how each does on the records.

    In scope are each edit's request and rephrases; out of scope are its locality queries. The
    first `CALIBRATION_RECORDS` are used.

    Raises:
        CalibrationError: if there are no records.
    """
    chosen = _for_calibration(records)
    queries = _calibration_queries(chosen)
    read = read_gate_states(editor, queries, autocast=autocast)
    return _calibrate(editor, read.of(0, len(queries)), len(chosen))


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
    their pictures nor what they show nor their questions teach, as far as the data allow; see
    `held_out`.

    Args:
        editor: whose gate.
        records: as many of them are used as `records_for_gate` says.
        config: of the training.
        progress: whether to show bars.

    Raises:
        CalibrationError: if there are too few records to hold any out.
    """
    records = records_for_gate(records, config)
    teaching = _Teaching.of(records, config)
    read = _read(editor, teaching.queries, teaching.first, config, progress)
    calibration = _trained(editor, *teaching.states(read), config, progress=progress)
    fit_text_keys(editor, records, config, progress=progress)
    return calibration


def _read(
    editor: DualEditor,
    queries: Sequence[Query],
    first: Sequence[bool],
    config: TrainingConfig,
    progress: bool,
) -> GateStates:
    return read_gate_states(
        editor, queries, first=first, autocast=config.autocast, progress=progress
    )


def _for_calibration(records: Sequence[Record]) -> Sequence[Record]:
    if not records:
        raise CalibrationError("no records to calibrate the gate on; give at least one")
    return records[:CALIBRATION_RECORDS]


def _calibration_queries(records: Sequence[Record]) -> list[Query]:
    """Return the queries of records, metric after metric."""
    return [query for metric in METRICS for query in metric_queries(records, metric)]


@torch.no_grad()
def _calibrate(editor: DualEditor, read: GateStates, count: int) -> dict[GateKind, Calibration]:
    """Calibrate on what was read of the `_calibration_queries` of so many records."""
    request = read.of(0, count)  # the first metric
    times = len(METRICS)
    in_scope = torch.tensor([metric in IN_SCOPE for metric in METRICS])
    return set_thresholds(
        editor.gate,
        ScopeSample(
            query_gate=read.gate,
            query_last=read.last,
            edit_gate=request.gate.repeat(times, 1),
            edit_last=request.last.repeat(times, 1),
            in_scope=in_scope.repeat_interleave(count).to(read.gate.device),
        ),
    )


@dataclass(frozen=True)
class _Teaching:
    """Which queries teach a `learned` gate, and which choose its thresholds."""

    division: Division
    taught: ScopeQueries
    apart: ScopeQueries

    @classmethod
    def of(cls, records: Sequence[Record], config: TrainingConfig) -> "_Teaching":
        if len(records) < _FEWEST:
            raise CalibrationError(
                f"{len(records)} records are too few to train a gate on; give at least {_FEWEST},"
                " or set gate_steps to 0"
            )
        count = max(1, min(HELD_OUT, len(records) // 6))
        division = divided(records, count, seed=config.seed)
        parts = (division.teaching, division.held_out)
        return cls(division, *(ScopeQueries.of(part, seed=config.seed) for part in parts))

    @property
    def queries(self) -> list[Query]:
        return self.taught.queries + self.apart.queries

    @property
    def first(self) -> list[bool]:
        return self.taught.first + self.apart.first

    def states(self, read: GateStates) -> tuple[ScopeStates, ScopeStates]:
        """Return the states that teach and those held out, of what was read of `queries`."""
        middle = len(self.taught.queries)
        taught = self.taught.states(read.of(0, middle))
        apart = self.apart.states(read.of(middle, len(read.row)))
        for kind in (metric for metric in METRICS if metric not in IN_SCOPE):
            parts = (self.division.teaching, self.division.held_out)
            used = unshared(*(metric_queries(part, kind) for part in parts))
            for states, mask in zip((taught, apart), used, strict=True):
                states.counts[kind] = torch.tensor(mask, device=states.partners.device)
        return taught, apart


def _trained(
    editor: DualEditor,
    taught: ScopeStates,
    apart: ScopeStates,
    config: TrainingConfig,
    *,
    progress: bool,
) -> Calibration:
    """Train every form, and keep the one that treats most held-out queries rightly."""
    tried: list[tuple[float, GateProjection, Calibration]] = []
    for fitting in FITTINGS:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            projection = fit_projection(taught, fitting, config, progress=progress)
        allowed = editor.config.gate.false_open_rate
        found = _calibrate_projection(projection, apart, false_open_rate=allowed)
        right = fmean(each.right for each in found)
        logger.info(
            "the %s form of the learned gate treats %.4f of held-out queries rightly",
            fitting.form,
            right,
        )
        single = Calibration(found[0].threshold, found[0].true_open_rate, found[0].false_open_rate)
        tried.append((right, projection, single))
    _, editor.gate.projection, single = max(tried, key=operator.itemgetter(0))
    return single


@torch.no_grad()
def _calibrate_projection(
    projection: GateProjection, states: ScopeStates, *, false_open_rate: float
) -> list[CountCalibration]:
    """Set the thresholds of a projection; return how it does among each of `EDIT_COUNTS`."""
    edits = projection(states.gate[_REQUEST], states.vision[_REQUEST])
    kinds = {
        kind: ScopedSimilarities(
            kind in IN_SCOPE,
            projection.similarity(projection(states.gate[kind], states.vision[kind]), edits),
            states.counts[kind],
            states.partners if kind == OTHER_IMAGE else None,
        )
        for kind in SCOPE
    }
    calibrations = thresholds_by_count(
        list(kinds.values()),
        EDIT_COUNTS,
        false_open_rate=false_open_rate,
        hardest=[ScopedSimilarities.of_nearest(kinds[_REQUEST].similarity, states.answers)],
    )
    thresholds = [calibrations[count].threshold for count in EDIT_COUNTS]
    projection.thresholds.copy_(torch.tensor(thresholds))
    for count, each in calibrations.items():
        logger.info(
            "the %s form among %d edits: threshold %.3f, opens rightly for %.4f, wrongly for %.4f",
            projection.form,
            count,
            each.threshold,
            each.true_open_rate,
            each.false_open_rate,
        )
    return [calibrations[count] for count in EDIT_COUNTS]
