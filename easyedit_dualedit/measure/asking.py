"""Asks a model the questions about records, and keeps what it says to each.

Methods that are not ours are asked every question alone, in a batch of one and without padding, as
EasyEdit's evaluator does: some of them count positions from the left, and no method's number may
depend on its neighbours. `Panel` asks DualEdit the questions about several records together. All
forwards come before the first generation, for methods whose state a generation changes.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
class Asked:
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
    ):
        """Encode nothing yet.

        Args:
            encoder: encodes for the models that are asked.
            questions: about each record.
            protocols: which are measured; nothing else is computed.
        """
        self._encoder = encoder
        self._questions = tuple(questions)
        self._protocols = frozenset(protocols)
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
        every = asked_of(self._encoder, self._questions, edited.asked)
        if "easyedit" in self._protocols:
            for one in every:
                if one.name in self._questions[one.record].own:
                    one.reply = self._in_easyedits_row(edited, one)
        for one in every:
            if is_forced(one, self._questions, self._protocols):
                batch = self._encoded.batch(one.query)
                logits, one.seconds = _timed_forward(edited, batch)
                (tokens,) = named_tokens(logits, batch.target)
                one.reply = replace(one.reply, predicted=tokens)
        # Under any protocol the page shows what is said to the record's own questions.
        for one in every:
            self._answer(edited, one)
        return replies_of(every, len(self._questions))

    @torch.no_grad()
    def request_seconds(self, edited: Edited) -> float:
        """Return how long one forward of the first record's own request takes, its answer fed in.

        Asked of the unedited model before an edit and of the edited one within it, it gives a pair
        that a machine's changing speed does not part.
        """
        request = edited.asked(self._questions[0].own[METRICS[0]])
        return _timed_forward(edited, self._encoder.encode([request]))[1]

    def _in_easyedits_row(self, edited: Edited, one: Asked) -> Reply:
        row = joined_row(self._encoder, one.query)
        logits = _logits(edited.model(**row.inputs))
        if one.name in IN_SCOPE:
            return Reply(accuracy=answer_accuracy(logits, row.labels))
        return Reply(likeliest=likeliest(logits, _RANKS[one.name]).to("cpu", torch.int32))

    def _answer(self, edited: Edited, one: Asked) -> None:
        """Ask for a free answer, and what the gate decides for it."""
        batch = self._encoded.batch(one.query, prompt=True)
        model, decided = edited.watched() if edited.watched is not None else (edited.model, [])
        (text,) = greedy_answers(model, self._encoder, batch, [one.limit])
        one.reply = replace(one.reply, text=text)
        if decided:
            similarity, is_open = decided[0].similarity.tolist(), decided[0].is_open.tolist()
            one.reply = replace(one.reply, similarity=similarity[0], is_open=is_open[0])


def asked_of(
    encoder: Encoder,
    questions: Sequence[Questions],
    worded: Callable[[Query], Query] | None = None,
    *,
    together: bool = False,
) -> list[Asked]:
    """Return every question about some records, record by record.

    Args:
        encoder: knows the tokens of answers.
        questions: about each record.
        worded: turns a question into what a method puts to the model.
        together: whether each answer may be as long as the longest that its record asks for.
    """
    every = []
    for record, asked in enumerate(questions):
        queries = {
            name: query if worded is None else worded(query) for name, query in asked.every.items()
        }
        limits = {name: _limit(encoder, asked, name, queries[name]) for name in queries}
        if together:
            limits = dict.fromkeys(limits, max(limits.values()))
        every += [Asked(record, name, queries[name], limits[name]) for name in queries]
    return every


def _limit(encoder: Encoder, questions: Questions, name: str, query: Query) -> int:
    """Return how many tokens a free answer may have, to tell any answer that is looked for."""
    old = replace(query, target=questions.old.get(name, query.target))
    return max(answer_limit(encoder, query), answer_limit(encoder, old))


def is_forced(
    one: Asked, questions: Sequence[Questions], protocols: Collection[ProtocolName]
) -> bool:
    """Return whether the answer to a question is fed in."""
    about = questions[one.record]
    # The request's forward is what every method is timed by.
    own = about.own if "visedit" in protocols else METRICS[:1]
    return one.name in own or one.name in about.ported


def replies_of(asked: Sequence[Asked], records: int) -> list[Replies]:
    """Return what a model says about each of so many records."""
    replies = []
    for record in range(records):
        own = [one for one in asked if one.record == record]
        seconds = [one.seconds for one in own if one.seconds is not None]
        told = {one.name: one.reply for one in own}
        replies.append(Replies(told, median(seconds) if seconds else 0.0))
    return replies


class _Encoded:
    """Questions in a batch of one, each encoded once."""

    def __init__(self, encoder: Encoder):
        self._encoder = encoder
        self._batches: dict[tuple[int, bool], tuple[Query, Batch]] = {}

    def batch(self, query: Query, *, prompt: bool = False) -> Batch:
        """Return the batch of a question, with its answer unless `prompt`."""
        # By identity: pictures in memory cannot be hashed, and kept queries keep their ids.
        key = id(query), prompt
        if key not in self._batches:
            self._batches[key] = query, self._encoder.encode([query], with_target=not prompt)
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
