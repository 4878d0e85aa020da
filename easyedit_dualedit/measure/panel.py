"""The unedited model and edited ones, asked the same questions in the same batches.

What the unedited model says is asked first. Its states tell each gate's decision, by which the
edited model would decide too: where a gate stays closed for a whole batch, the edited model is the
unedited one, bit for bit, and is not asked the same again. The first such batch of each model is
asked all the same, to see that this holds.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.measure.asking import Asked, Replies, asked_of, is_forced, replies_of
from easyedit_dualedit.measure.encoded_rows import EncodedRows, RowSource
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.model.answer_logits import logits_at
from easyedit_dualedit.model.answers import greedy_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import Batch
from easyedit_dualedit.model.row_budget import RowBudget

logger = logging.getLogger(__name__)

Edits = Mapping[str, Sequence[EditedModel | None]]
"""By the name of a method, the edited model of each record; None is the unedited one."""


class Panel:
    """Asks about some records at a time."""

    def __init__(self, encoder: Encoder, budget: RowBudget | None = None):
        """Know nothing of the models yet.

        Args:
            encoder: of the unedited model.
            budget: of tokens that share a forward; found from the device by default.
        """
        self._encoder = encoder
        self.budget = RowBudget.of(encoder.backbone) if budget is None else budget
        self._source = RowSource(encoder)
        self._leaves_alone: dict[tuple[str, bool], bool] = {}
        """Whether a method's closed gate was seen to change nothing, with answers fed in or not."""

    @torch.no_grad()
    def ask(
        self, questions: Sequence[Questions], edits: Edits, protocols: Sequence[ProtocolName]
    ) -> tuple[list[Replies], dict[str, list[Replies]]]:
        """Return what the unedited model says about each record, and each method's edited models.

        Args:
            questions: about each record, equally many.
            edits: each record's edit is in force for the questions about it alone.
            protocols: which are measured; nothing else is computed. `easyedit` is none of them.

        Raises:
            DataError: if a picture cannot be read or a target tokenises to nothing.
        """
        every = asked_of(self._encoder, questions, together=True)
        per_record = len(questions[0].every)
        models = {}
        for name, each in edits.items():
            made = [model for model in each if model is not None]
            if made:
                models[name] = EditedModel.side_by_side(made, per_record)
        sitting = _Sitting(self, every, models)
        forced = [n for n, one in enumerate(every) if is_forced(one, questions, protocols)]
        for places in sitting.groups(forced):
            self.budget.run(places, sitting.rows.lengths, sitting.force)
        for places in sitting.groups(range(len(every))):
            self.budget.run(places, sitting.room, sitting.say)
        before = replies_of(sitting.said[None], len(questions))
        after = {
            name: replies_of(sitting.said[name], len(questions)) if name in models else before
            for name in edits
        }
        return before, after

    def is_trusted(self, name: str, forced: bool) -> bool:
        """Return whether a closed gate of a method need not be asked."""
        return self._leaves_alone.get((name, forced), False)

    def compare(self, name: str, forced: bool, same: bool) -> None:
        """Take note of whether a closed gate changed nothing."""
        if not same:
            logger.warning(
                "%s changes answers where its gate is closed; it is asked everything", name
            )
        self._leaves_alone.setdefault((name, forced), same)

    @property
    def source(self) -> RowSource:
        """Makes the batches."""
        return self._source


class _Sitting:
    """Some records while they are asked about."""

    def __init__(self, panel: Panel, every: list[Asked], models: Mapping[str, EditedModel]):
        self._panel = panel
        self._encoder = panel.source.encoder
        self._every = every
        self._models = models
        self.rows: EncodedRows = panel.source.rows([one.query for one in every])
        self.room = [
            length + one.limit for length, one in zip(self.rows.lengths, every, strict=True)
        ]
        """Tokens of each row and of its free answer."""
        # Of each method, and of the unedited model by the name of None.
        self.said: dict[str | None, list[Asked]] = {
            name: [replace(one) for one in every] for name in (None, *models)
        }

    def groups(self, places: Sequence[int]) -> list[list[int]]:
        """Return rows that may share a batch: that show one kind of thing, in scope or not.

        Not every model takes videos of several lengths at once.
        """
        groups: dict[tuple[str, int, bool], list[int]] = {}
        for place in places:
            one = self._every[place]
            length = self.rows.video_length(place)
            key = (self._panel.source.kind(one.query), length, one.name in IN_SCOPE)
            groups.setdefault(key, []).append(place)
        return list(groups.values())

    def force(self, places: Sequence[int]) -> None:
        """Ask rows with their answers fed in."""
        with self.rows.batch(places, with_target=True) as batch:
            at = torch.zeros_like(batch.target)
            at[:, :-1] = batch.target[:, 1:]
            counts = at.sum(1).tolist()

            def named(model: Any, **known: Any) -> list[tuple[int, ...]]:
                call = partial(model, **batch.inputs, use_cache=False, **known)
                tokens = logits_at(self._encoder.backbone, at, call).argmax(-1)
                return [tuple(part.tolist()) for part in torch.split(tokens, counts)]

            with self._states() as states:
                before = named(self._encoder.backbone.model)
            self._keep(None, places, predicted=before)
            for name in self._models:
                model, routing = self._decided(name, places, batch, states)
                if self._is_known(name, routing, forced=True):
                    after = before
                else:
                    after = named(model, layout=batch.layout)
                    self._compare(name, routing, True, before == after)
                self._keep(name, places, predicted=after)

    def say(self, places: Sequence[int]) -> None:
        """Ask rows for free answers."""
        limits = [self._every[place].limit for place in places]
        with self.rows.batch(places, with_target=False) as batch:
            with self._states() as states:
                before = greedy_answers(self._encoder.backbone.model, self._encoder, batch, limits)
            self._keep(None, places, text=before)
            for name in self._models:
                model, routing = self._decided(name, places, batch, states)
                if self._is_known(name, routing, forced=False):
                    after = before
                else:
                    after = greedy_answers(model, self._encoder, batch, limits)
                    self._compare(name, routing, False, before == after)
                self._keep(
                    name,
                    places,
                    text=after,
                    similarity=routing.similarity.tolist(),
                    is_open=routing.is_open.tolist(),
                )

    def _states(self) -> AbstractContextManager[dict[int, Tensor]]:
        layers = sorted({model.gate_layer for model in self._models.values()})
        return record(self._encoder.backbone.layers, layers, first=True)

    def _decided(
        self, name: str, places: Sequence[int], batch: Batch, states: Mapping[int, Tensor]
    ) -> tuple[EditedModel, Routing]:
        model = self._models[name].of_rows(places)
        hidden = states.get(model.gate_layer)
        if hidden is None or hidden.shape[:2] != batch.layout.real.shape:
            return model, model.route(layout=batch.layout, **batch.inputs)
        return model, model.decide(hidden, batch.layout)

    def _is_known(self, name: str, routing: Routing, *, forced: bool) -> bool:
        return not bool(routing.is_open.any()) and self._panel.is_trusted(name, forced)

    def _compare(self, name: str, routing: Routing, forced: bool, same: bool) -> None:
        if not bool(routing.is_open.any()):
            self._panel.compare(name, forced, same)

    def _keep(self, name: str | None, places: Sequence[int], **values: Sequence[object]) -> None:
        for row, place in enumerate(places):
            one = self.said[name][place]
            found = {key: value[row] for key, value in values.items()}
            one.reply = replace(one.reply, **found)  # type: ignore[arg-type]
