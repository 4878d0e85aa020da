"""Asks a model the questions about records, and keeps what it says to each.

Methods that are not ours are asked every question alone, in a batch of one and without padding, as
EasyEdit's evaluator does: some of them count positions from the left, and no method's number may
depend on its neighbours. DualEdit may be asked the questions about several records together. All
forwards come before the first generation, for methods whose state a generation changes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.measure.metrics import answer_accuracy, likeliest, named_tokens
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.measure.questions import Questions
from easyedit_dualedit.model.answers import answer_limit, greedy_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Batch, Query

_RANKS = {"text_locality": 1, "image_locality": 10}
"""Likeliest tokens that EasyEdit compares."""


@dataclass(frozen=True)
class Reply:
    """What a model says to one question; None where no protocol asks for it."""

    text: str | None = None
    """Greedy answer to the prompt alone."""
    predicted: tuple[int, ...] | None = None
    """Arg-max at the positions before each answer token, the answer fed in."""
    accuracy: float | None = None
    """Share of answer tokens predicted in EasyEdit's own row."""
    likeliest: Tensor | None = None
    """Likeliest tokens at every position of EasyEdit's own row, int32 [1, s, k]."""
    similarity: float | None = None
    """To the edit, by the gate."""
    is_open: bool | None = None
    """Whether the gate opened."""


@dataclass(frozen=True)
class Replies:
    """What a model says to the questions about one record."""

    to: Mapping[str, Reply]
    """By the name of the question."""
    forward_seconds: float = 0.0
    """Median over the forwards with the answer fed in."""

    @property
    def texts(self) -> dict[str, str | None]:
        """The greedy answers by the name of the question."""
        return {name: reply.text for name, reply in self.to.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the answers and what the gate decided, as a case on disk holds them."""
        return {
            "answers": self.texts,
            "gate": {
                name: {"similarity": reply.similarity, "open": reply.is_open}
                for name, reply in self.to.items()
                if reply.is_open is not None
            },
        }


@dataclass
class _Asked:
    """One question as it is put to a model, and what the model says."""

    record: int
    """Place of its record among those that are asked about."""
    name: str
    query: Query
    limit: int
    """Tokens that the free answer may have."""
    reply: Reply = field(default_factory=Reply)
    seconds: float | None = None
    """Of the forward with the answer fed in."""


class Asker:
    """Asks models the questions about some records, which are encoded once for all of them."""

    def __init__(
        self,
        encoder: Encoder,
        questions: Sequence[Questions],
        protocols: Sequence[ProtocolName],
        *,
        together: bool = False,
    ):
        """Encode nothing yet.

        Args:
            encoder: encodes for the models that are asked.
            questions: about each record.
            protocols: which are measured; nothing else is computed.
            together: whether all questions share padded batches; otherwise each is asked alone.
                Together, each answer may be as long as the longest that its record asks for.
        """
        self._encoder = encoder
        self._questions = tuple(questions)
        self._protocols = frozenset(protocols)
        self._together = together
        self._encoded = _Encoded(encoder)

    @torch.no_grad()
    def ask(self, edited: Edited) -> list[Replies]:
        """Return what a model says to the questions about each record.

        Args:
            edited: the model; if questions about several records share a batch, it is to know
                which edit each row may use.

        Raises:
            DataError: if a picture cannot be read or a target tokenises to nothing.
        """
        every = self._asked_of(edited)
        if "easyedit" in self._protocols:
            for one in every:
                if one.name in self._questions[one.record].own:
                    one.reply = self._in_easyedits_row(edited, one)
        for part in self._batches([one for one in every if self._is_forced(one)]):
            batch = self._encoded.batch([one.query for one in part])
            logits, seconds = _timed_forward(edited, batch)
            for one, tokens in zip(part, named_tokens(logits, batch.target), strict=True):
                one.reply = replace(one.reply, predicted=tokens)
                one.seconds = seconds
        if edited.route is not None:
            for part in self._batches(every):
                batch = self._encoded.batch([one.query for one in part], prompt=True)
                routing = edited.route(batch)
                opened = zip(routing.similarity.tolist(), routing.is_open.tolist(), strict=True)
                for one, (similarity, is_open) in zip(part, opened, strict=True):
                    one.reply = replace(one.reply, similarity=similarity, is_open=is_open)
        # Under any protocol the page shows what is said to the record's own questions.
        for part in self._batches(every):
            for one, text in zip(part, self._generated(edited, part), strict=True):
                one.reply = replace(one.reply, text=text)
        return [
            _replies([one for one in every if one.record == record])
            for record in range(len(self._questions))
        ]

    @torch.no_grad()
    def request_seconds(self, edited: Edited) -> float:
        """Return how long one forward of the first record's own request takes, its answer fed in.

        Asked of the unedited model before an edit and of the edited one within it, it gives a pair
        that a machine's changing speed does not part.
        """
        request = edited.asked(self._questions[0].own[METRICS[0]])
        return _timed_forward(edited, self._encoder.encode([request]))[1]

    def _asked_of(self, edited: Edited) -> list[_Asked]:
        """Return every question as the method puts it to the model, record by record."""
        every = []
        for record, questions in enumerate(self._questions):
            queries = {name: edited.asked(query) for name, query in questions.every.items()}
            limits = {name: self._limit(questions, name, queries[name]) for name in queries}
            if self._together:
                limits = dict.fromkeys(limits, max(limits.values()))
            every += [_Asked(record, name, queries[name], limits[name]) for name in queries]
        return every

    def _limit(self, questions: Questions, name: str, query: Query) -> int:
        """Return how many tokens a free answer may have, to tell any answer that is looked for."""
        old = replace(query, target=questions.old.get(name, query.target))
        return max(answer_limit(self._encoder, query), answer_limit(self._encoder, old))

    def _is_forced(self, one: _Asked) -> bool:
        """Return whether the answer to a question is fed in."""
        questions = self._questions[one.record]
        # The request's forward is what every method is timed by.
        own = questions.own if "visedit" in self._protocols else METRICS[:1]
        return one.name in own or one.name in questions.ported

    def _batches(self, asked: Sequence[_Asked]) -> Iterator[Sequence[_Asked]]:
        size = max(1, len(asked)) if self._together else 1
        for start in range(0, len(asked), size):
            yield asked[start : start + size]

    def _in_easyedits_row(self, edited: Edited, one: _Asked) -> Reply:
        row = joined_row(self._encoder, one.query)
        logits = _logits(edited.model(**row.inputs))
        if one.name in IN_SCOPE:
            return Reply(accuracy=answer_accuracy(logits, row.labels))
        return Reply(likeliest=likeliest(logits, _RANKS[one.name]).to("cpu", torch.int32))

    def _generated(self, edited: Edited, part: Sequence[_Asked]) -> list[str]:
        batch = self._encoded.batch([one.query for one in part], prompt=True)
        return greedy_answers(edited.model, self._encoder, batch, [one.limit for one in part])


def _replies(asked: Sequence[_Asked]) -> Replies:
    """Return what a model says about one record."""
    seconds = [one.seconds for one in asked if one.seconds is not None]
    return Replies({one.name: one.reply for one in asked}, median(seconds) if seconds else 0.0)


class _Encoded:
    """Batches of questions, each encoded once."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._batches: dict[tuple[tuple[int, ...], bool], tuple[Sequence[Query], Batch]] = {}

    def batch(self, queries: Sequence[Query], *, prompt: bool = False) -> Batch:
        """Return the batch of some questions, with their answers unless `prompt`."""
        # By identity: pictures in memory cannot be hashed, and kept queries keep their ids.
        key = tuple(map(id, queries)), prompt
        if key not in self._batches:
            batch = self._encoder.encode(queries, with_target=not prompt)
            self._batches[key] = queries, batch
        return self._batches[key][1]


def _timed_forward(edited: Edited, batch: Batch) -> tuple[Tensor, float]:
    """Return the logits [b, s, v] of a batch, and the seconds that the forward took."""
    known = {"layout": batch.layout} if edited.reads_layout else {}
    _wait_for(batch.inputs["input_ids"])
    start = time.perf_counter()
    logits = _logits(edited.model(**batch.inputs, **known))
    _wait_for(logits)
    return logits, time.perf_counter() - start


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _wait_for(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
