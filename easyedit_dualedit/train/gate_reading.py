"""Reads what a gate decides by: states of one layer for many queries, each thing run once.

No layer above the gate's runs, but where the first token of an answer is asked for. A query that is
asked twice is read once, a picture passes the vision tower once, questions about one picture share
its row, and rows of like length are read together.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_keys import vision_mean
from easyedit_dualedit.model.answer_logits import last_position, logits_at
from easyedit_dualedit.model.hooks import record, undisturbed
from easyedit_dualedit.model.inputs import Query, TokenLayout, input_device
from easyedit_dualedit.model.letters import LETTERS_WIDTH
from easyedit_dualedit.model.picture_features import UnknownFeaturesError
from easyedit_dualedit.model.query_cache import PreparedQuery
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.processes import Processes
from easyedit_dualedit.train.frozen_part import FrozenPart, UnsupportedModelError, precision
from easyedit_dualedit.train.gate_rows import GateBatches, GateRow, RowLength, distinct_rows
from easyedit_dualedit.train.shared_rows import UnshareableError
from easyedit_dualedit.train.upper_layers import FrozenOutput, head_of

logger = logging.getLogger(__name__)

BATCH_TOKENS = 4096
"""Tokens that are read together at most, padding included, where memory has room for them."""

_FEATURE_BYTES = 2**26
_CHECKED = 8
_TOLERANCE = 1e-4
_ROUGH_TOLERANCE = 5e-2  # of models in half precision
_SHORTCUTS = ("shares", "trims")
_UNREAD = -1

Prepared = dict[Hashable, PreparedQuery]
_Read = tuple[tuple[Tensor, ...], Tensor | None]
"""Four states of some rows, and the logits of first answer tokens, [a, v], if any row asks."""


@dataclass(frozen=True)
class GateStates:
    """Gate states of some queries. Shapes: n queries, m distinct ones, d hidden size."""

    gate: Tensor
    """States of last prompt tokens, float32 [m, d]."""
    last: Tensor
    """States of last tokens, target included, float32 [m, d]."""
    vision: Tensor
    """Means of image tokens, float32 [m, d]; zeros without a picture."""
    text: Tensor
    """What prompts without a picture say, float32 [m, d + l]; zeros with one."""
    first: Tensor
    """Tokens with which the unedited model begins its answers, long [m]; -1 where not asked for."""
    row: Tensor
    """Which of the distinct queries each query is, long [n]."""

    def of(self, start: int, stop: int) -> "GateStates":
        """Return the states of the queries from one place up to another, as if read alone."""
        row = self.row[start:stop]
        each = [value[row] for value in (self.gate, self.last, self.vision, self.text, self.first)]
        return GateStates.of_each(each)

    @classmethod
    def of_each(cls, values: Sequence[Tensor], row: Tensor | None = None) -> "GateStates":
        """Return states by the five kinds of value, of queries that are all distinct by default."""
        gate, last, vision, text, first = values
        own = torch.arange(len(gate), device=gate.device) if row is None else row
        return cls(gate, last, vision, text, first, own)


def read_gate_states(
    editor: DualEditor,
    queries: Sequence[Query],
    *,
    first: Sequence[bool] | None = None,
    autocast: str = "none",
    progress: bool = False,
) -> GateStates:
    """Return what a gate reads of queries; the states lie where the gate does.

    Args:
        editor: whose text layer is read.
        queries: at least one; what one without a target asks may be read with a target.
        first: whose first answer token is asked for; None means of none.
        autocast: as in `TrainingConfig`.
        progress: whether to show a bar.

    Raises:
        DataError: if a picture cannot be read, or a target tokenises to nothing.
    """
    return GateReader(editor).read(queries, first=first, autocast=autocast, progress=progress)


class GateReader:
    """Reads gate states; what the model does not bear of shortcuts is found out at the first."""

    def __init__(self, editor: DualEditor, *, batch_tokens: int = BATCH_TOKENS):
        """Read nothing yet."""
        self._editor = editor
        room = RowBudget.of(editor.backbone).tokens
        self._budget = RowBudget(min(batch_tokens, room), input_device(editor.backbone.model))
        self._frozen = FrozenPart(
            editor.encoder, editor.config.text_layer, budget=_FEATURE_BYTES, state_budget=0
        )
        self._checked: set[tuple[bool, ...]] = set()
        self.is_plain = False
        """Whether the model cannot be run in parts, so that every query is a forward of its own."""

    @property
    def shares(self) -> bool:
        """Whether questions about one picture share a row."""
        return self._frozen.shares and not self.is_plain

    @torch.no_grad()
    def read(
        self,
        queries: Sequence[Query],
        *,
        first: Sequence[bool] | None = None,
        autocast: str = "none",
        progress: bool = False,
    ) -> GateStates:
        """Return what a gate reads of queries; see `read_gate_states`.

        Several processes each read a share of the queries, and all get everything.
        """
        editor = self._editor
        rows, row_of = distinct_rows(queries, first)
        processes = Processes.current()
        device, size = editor.gate.mean.device, len(editor.gate.mean)
        # Rows that another process reads stay 0, and so the sum over all processes is everything.
        widths = (size, size, size, size + LETTERS_WIDTH)
        kept = [torch.zeros(len(rows), width, device=device) for width in widths]
        kept.append(torch.zeros(len(rows), dtype=torch.long, device=device))
        batches = GateBatches(rows, self._length, self._budget, processes)
        total = len(rows) // processes.count
        bar = tqdm(total=total, desc="reading states", unit="query", disable=not progress)
        computing = precision(input_device(editor.backbone.model).type, autocast)
        with undisturbed(editor.backbone.model), computing, bar:
            for batch, prepared in batches:

                def work(part: list[GateRow], prepared: Prepared = prepared) -> None:
                    places = torch.tensor([row.place for row in part], device=device)
                    for values, read in zip(kept, self._states(part, prepared), strict=True):
                        values[places] = read.to(values)

                self._budget.run_together(batch, work)
                batches.shares = self.shares
                bar.update(len(batch))
        return GateStates.of_each([processes.total(values) for values in kept], row_of.to(device))

    def _length(self, row: GateRow, prepared: Prepared) -> RowLength:
        encoder, query = self._editor.encoder, row.query
        casts = torch.is_autocast_enabled(input_device(self._editor.backbone.model).type)
        prompt = self._frozen.prompts.get(query, (row.pictures, casts), prepared)
        ids = prompt.tokens["input_ids"]
        answer = len(encoder.target_ids(query.target)) if query.target else 0
        seen = encoder.vision_positions(ids).nonzero()
        return RowLength(len(ids) + answer, int(seen[-1]) + 1 if len(seen) else 0)

    def _states(self, rows: Sequence[GateRow], prepared: Prepared) -> tuple[Tensor, ...]:
        """Return what `GateStates` has of some rows: four states, and first answer tokens."""
        if not self.is_plain:
            try:
                states, logits = self._shared(rows, prepared)
                return (*states, _first_tokens(rows, logits))
            except (UnsupportedModelError, UnknownFeaturesError) as reason:
                logger.warning("every query of the gate runs a forward of its own: %s", reason)
                self.is_plain = True
        states, logits = self._plain(rows)
        return (*states, _first_tokens(rows, logits))

    def _shared(self, rows: Sequence[GateRow], prepared: Prepared) -> _Read:
        try:
            read = self._run(rows, prepared)
        except UnshareableError as reason:
            self._without("shares", str(reason))
            read = self._run(rows, prepared)
        # Rows that share are tried apart: what holds of others need not hold of them.
        seen = Counter(row.pictures for row in rows if row.pictures)
        sharing = [place for place, row in enumerate(rows) if seen[row.pictures] > 1]
        kind = (bool(rows[0].pictures), rows[0].query.video is not None)
        sort = (*kind, bool(sharing) and self._frozen.shares)
        if sort in self._checked:
            return read
        few = (sharing or list(range(len(rows))))[:_CHECKED]
        backbone = self._editor.backbone
        exact = next(backbone.model.parameters()).dtype == torch.float32
        exact = exact and not torch.is_autocast_enabled(input_device(backbone.model).type)
        bound = _TOLERANCE if exact else _ROUGH_TOLERANCE
        expected = self._plain([rows[place] for place in few])
        for shortcut in _SHORTCUTS:
            if _agrees(_at(read, few, rows), expected, bound):
                break
            self._without(shortcut, "the states are then not those of a whole forward")
            read = self._run(rows, prepared)
        if not _agrees(_at(read, few, rows), expected, bound):
            raise UnsupportedModelError("the states differ from those of a whole forward")
        self._checked.add(sort)
        return read

    def _without(self, shortcut: str, reason: str) -> None:
        logger.warning("a gate's states are read without a shortcut (%s): %s", shortcut, reason)
        setattr(self._frozen, shortcut, False)

    def _run(self, rows: Sequence[GateRow], prepared: Prepared) -> _Read:
        """Return the states of rows, and the logits of first answer tokens, [a, v], if any ask."""
        queries = [row.query for row in rows]
        # No edit tells the rows apart.
        owners = [None] * len(rows) if rows[0].pictures else None
        output = self._frozen.run(queries, [False] * len(rows), owners, prepared)
        asking = [place for place, row in enumerate(rows) if row.wants_first]
        logits = _first_logits(self._editor.backbone.model, output, asking) if asking else None
        return _states_at(output.states, output.batch.layout, self._editor.gate), logits

    def _plain(self, rows: Sequence[GateRow]) -> _Read:
        """Return what `_run` does, by whole forwards."""
        editor, batch_size = self._editor, _CHECKED
        parts, logits = [], []
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            parts.append(plain_gate_states(editor, [row.query for row in some]))
            asking = [replace(row.query, target=None) for row in some if row.wants_first]
            if asking:
                batch, backbone = editor.encoder.encode(asking), editor.backbone
                call = partial(backbone.model, **batch.inputs, use_cache=False)
                logits.append(logits_at(backbone, last_position(batch.inputs["input_ids"]), call))
        states = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        return states, torch.cat(logits) if logits else None


@torch.no_grad()
def plain_gate_states(editor: DualEditor, queries: Sequence[Query]) -> tuple[Tensor, ...]:
    """Return states of last prompt tokens and of last tokens, and means of image tokens, each
    [n, d], and what prompts without a picture say, [n, d + l].

    Every query is a row of its own, all of one forward, which ends at the text layer.
    """
    layer, backbone = editor.config.text_layer, editor.backbone
    batch = editor.encoder.encode(queries)
    with undisturbed(backbone.model), record(backbone.layers, [layer], stop=True) as seen:
        backbone.model(**batch.inputs, use_cache=False)
    return _states_at(seen[layer], batch.layout, editor.gate)


def _states_at(hidden: Tensor, layout: TokenLayout, gate: Gate) -> tuple[Tensor, ...]:
    rows = torch.arange(len(hidden), device=hidden.device)
    return (
        hidden[rows, layout.gate.to(hidden.device)].float(),
        hidden[rows, layout.last.to(hidden.device)].float(),
        vision_mean(hidden, layout.vision),
        gate.said(hidden, layout),
    )


def _first_logits(model: Any, output: FrozenOutput, asking: Sequence[int]) -> Tensor:
    """Return the logits behind the prompts of some rows, [a, v]; the lm_head sees nothing else."""
    upper = output.take(asking)
    gate = output.batch.layout.gate[upper.rows]
    at = torch.zeros_like(output.batch.layout.real[upper.rows])
    at[torch.arange(len(gate), device=at.device), gate] = True
    logits: Tensor = head_of(model)(upper.final_states(at))
    return logits


def _first_tokens(rows: Sequence[GateRow], logits: Tensor | None) -> Tensor:
    tokens = torch.full((len(rows),), _UNREAD)
    if logits is not None:
        asking = torch.tensor([row.wants_first for row in rows])
        tokens[asking] = logits.argmax(-1).to(tokens)
    return tokens


def _at(read: _Read, places: Sequence[int], rows: Sequence[GateRow]) -> _Read:
    """Return what was read of some rows."""
    states, logits = read
    asking = [place for place, row in enumerate(rows) if row.wants_first]
    chosen = [asking.index(place) for place in places if place in asking]
    device = states[0].device
    index = torch.tensor(list(places), device=device)
    some = tuple(values[index] for values in states)
    if logits is None or not chosen:
        return some, None
    return some, logits[torch.tensor(chosen, device=device)]


def _agrees(read: _Read, expected: _Read, bound: float) -> bool:
    """Return whether rows are what they should be, but for a share of the largest."""
    pairs = list(zip(read[0], expected[0], strict=True))
    if read[1] is not None and expected[1] is not None:
        pairs.append((read[1], expected[1]))
    for got, wanted in pairs:
        some = got.float().to(wanted.device)
        scale = float(wanted.abs().amax())
        if not torch.allclose(some, wanted.float(), rtol=0, atol=bound * scale):
            return False
    return True
