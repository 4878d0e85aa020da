"""The one editor behind all sessions: it answers for one of them at a time."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from easyedit_dualedit.app.attention_map import AttentionMap
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.stored_edit import picture_hashes
from easyedit_dualedit.model.answers import greedy_answers
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Query

_LONGEST = 48
"""Tokens of an answer that is shown."""

_REMEMBERED = 4096
"""Answers of the unedited model that are kept: it always gives the same ones."""


@dataclass(frozen=True)
class Outcome:
    """One question, answered without and with the edits, and what the gate decided."""

    query: Query
    before: str
    after: str
    similarity: float | None = None
    """Of the question to the nearest edit; None where there is no edit to compare with."""
    threshold: float | None = None
    """From which similarity the gate opens."""
    fired: str | None = None
    """Id of the edit that applied."""

    @property
    def is_changed(self) -> bool:
        """Whether the edits gave another answer."""
        return self.before != self.after


class SharedEditor:
    """An editor, with a lock: sessions take turns, and none sees what another has asked."""

    def __init__(self, editor: DualEditor, name: str):
        """Share an editor.

        Args:
            editor: its model answers; neither is changed.
            name: of the model, as the page shows it.
        """
        self.editor = editor
        self.name = name
        self._lock = threading.RLock()
        self._before: OrderedDict[tuple[Any, ...], str] = OrderedDict()

    @contextmanager
    def turn(self) -> Iterator[DualEditor]:
        """Give the editor to one thread alone."""
        with self._lock, torch.no_grad():
            yield self.editor

    def outcomes(self, memory: EditMemory, queries: Sequence[Query]) -> list[Outcome]:
        """Return what comes of questions, all asked in one batch.

        Args:
            memory: the edits in force.
            queries: without targets.

        Raises:
            DataError: if a picture cannot be read.
        """
        with self.turn():
            before = self._answers_before(queries)
            if not len(memory):
                pairs = zip(queries, before, strict=True)
                return [Outcome(query, answer, answer) for query, answer in pairs]
            model, decided = memory.model.watched()
            after = self._answers(model, queries)
        ids = [edit.id for edit in memory]
        threshold = model.edit_gate.threshold_among(len(ids))
        # One decision for each row: the prompt's forward is the only one that asks the gate.
        similarities, places = decided[0].similarity.tolist(), decided[0].edit_index.tolist()
        rows = zip(queries, before, after, similarities, places, strict=True)
        return [
            Outcome(query, old, new, similarity, threshold, None if place < 0 else ids[place])
            for query, old, new, similarity, place in rows
        ]

    def attention(self, memory: EditMemory, query: Query, answer: str) -> "AttentionMap | str":
        """Return where the model with the edits looks while it gives an answer, or why not."""
        with self.turn() as editor:
            model = memory.model if len(memory) else editor.backbone.model
            return AttentionMap.of(editor.encoder, model, query, answer)

    def _answers_before(self, queries: Sequence[Query]) -> list[str]:
        keys = [(query.prompt, picture_hashes(query)) for query in queries]
        unknown = dict(zip(keys, queries, strict=True))
        for key in [key for key in unknown if key in self._before]:
            self._before.move_to_end(key)
            del unknown[key]
        if unknown:
            answers = self._answers(self.editor.backbone.model, list(unknown.values()))
            self._before.update(zip(unknown, answers, strict=True))
        told = [self._before[key] for key in keys]
        while len(self._before) > _REMEMBERED:
            self._before.popitem(last=False)
        return told

    def _answers(self, model: Any, queries: Sequence[Query]) -> list[str]:
        encoder = self.editor.encoder
        batch = encoder.encode(queries, with_target=False)
        with undisturbed(encoder.backbone.model):
            return greedy_answers(model, encoder, batch, [_LONGEST] * len(queries))
