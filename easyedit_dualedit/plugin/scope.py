"""Remembers, during EasyEdit's training, which queries each edit should and should not concern.

EasyEdit's trainer has no step in which a gate could be calibrated, so the first pairs that it
trains on are kept as it goes, and the gate is calibrated on them when it is needed. The states do
not depend on what is being trained, so there is nothing to gain from later ones.
"""

import torch
from torch import Tensor

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_calibration import ScopeSample, set_thresholds
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import Batch

_CAPACITY = 2500
"""Pairs kept: a request of training gives five."""

_Pair = tuple[Tensor, Tensor, Tensor, Tensor, bool]


class ScopeRecord:
    """Pairs of a query and an edit that it was tried against."""

    def __init__(self, capacity: int = _CAPACITY):
        """Start without pairs; keep the first `capacity` or a few more."""
        self._pairs: list[_Pair] = []
        self._capacity = capacity
        self._is_new = False

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._pairs)

    @torch.no_grad()
    def add(
        self, editor: DualEditor, queries: Batch, requests: Batch, edits: list[EditSignal]
    ) -> None:
        """Remember row i of the queries with edit i.

        A query is in the edit's scope if it asks for the edit's own answer: the request and its
        rephrases do, locality queries have other answers.
        """
        if len(self._pairs) >= self._capacity:
            return
        layer = editor.config.text_layer
        with record(editor.backbone.layers, [layer], stop=True) as states:
            editor.backbone.model(**queries.inputs, use_cache=False)
        answers, wanted = _answers(queries), _answers(requests)
        for row, edit in enumerate(edits):
            self._pairs.append(
                (
                    # Copies: a view would keep the states of every token.
                    states[layer][row, queries.layout.gate[row]].float().cpu().clone(),
                    states[layer][row, queries.layout.last[row]].float().cpu().clone(),
                    edit.gate_state.float().cpu(),
                    edit.last_state.float().cpu(),
                    answers[row] == wanted[row],
                )
            )
        self._is_new = True

    def calibrate(self, gate: Gate) -> bool:
        """Calibrate `gate` on the pairs and return True, if new pairs allow it."""
        scopes = {pair[-1] for pair in self._pairs}
        if not self._is_new or scopes != {True, False}:
            return False
        query_gate, query_last, edit_gate, edit_last, in_scope = zip(*self._pairs, strict=True)
        set_thresholds(
            gate,
            ScopeSample(
                query_gate=torch.stack(query_gate),
                query_last=torch.stack(query_last),
                edit_gate=torch.stack(edit_gate),
                edit_last=torch.stack(edit_last),
                in_scope=torch.tensor(in_scope),
            ),
        )
        self._is_new = False
        return True


def _answers(batch: Batch) -> list[list[int]]:
    ids = batch.inputs["input_ids"]
    return [ids[row, batch.target[row]].tolist() for row in range(batch.size)]
