"""Asks a model the questions of one record, and scores its answers under each protocol.

Every question is asked alone, in a batch of one and without padding, as EasyEdit's evaluator does:
some methods count positions from the left, and no method's number may depend on its neighbours.
All forwards come before the first generation, for methods whose state a generation changes.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.measure.contender import Edited
from easyedit_dualedit.measure.easyedit_rows import joined_row
from easyedit_dualedit.measure.metrics import (
    answer_accuracy,
    exact_match,
    likeliest,
    likeliest_agreement,
)
from easyedit_dualedit.measure.protocols import Protocol
from easyedit_dualedit.measure.specificity import FAMILIES
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query

_PORTABILITY = "portability"
_SPARE_TOKENS = 8
_RANKS = {"text_locality": 1, "image_locality": 10}
"""Likeliest tokens that EasyEdit compares."""


@dataclass(frozen=True)
class Said:
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
class Answers:
    """What a model says to the questions of one record."""

    said: Mapping[str, Said]
    forward_seconds: float
    """Median over the forwards with the answer fed in."""


@dataclass(frozen=True)
class Questions:
    """The questions of one record by what they measure."""

    own: Mapping[str, Query]
    """The record's five queries."""
    close: Mapping[str, Query] = field(default_factory=dict)
    """Queries close to the edit that it should leave alone, with the unedited model's answers."""
    ported: Mapping[str, Query] = field(default_factory=dict)
    """Questions whose answer follows from the edit."""

    @classmethod
    def of(
        cls, record: Record, protocols: Sequence[Protocol], close: Mapping[str, Query] | None = None
    ) -> "Questions":
        """Return the questions that protocols ask about a record.

        Args:
            record: the edit and its queries.
            protocols: which are measured.
            close: queries of specificity, needed if it is measured.
        """
        ported = {
            f"{_PORTABILITY}_{place}": query for place, query in enumerate(record.portability)
        }
        return cls(
            dict(zip(METRICS, record.queries, strict=True)),
            dict(close or {}) if "specificity" in protocols else {},
            ported if "portability" in protocols else {},
        )

    @property
    def every(self) -> dict[str, Query]:
        """All questions."""
        return {**self.own, **self.close, **self.ported}


class Asker:
    """Asks one model, with the encoder that belongs to it."""

    def __init__(self, encoder: Encoder, protocols: Sequence[Protocol]):
        """Keep what is asked for.

        Args:
            encoder: encodes for the model.
            protocols: which are measured; nothing else is computed.
        """
        self._encoder = encoder
        self._protocols = frozenset(protocols)

    @torch.no_grad()
    def ask(self, edited: Edited, questions: Questions) -> Answers:
        """Return what a model says to the questions of a record."""
        every = {name: edited.asked(query) for name, query in questions.every.items()}
        said = dict.fromkeys(every, Said())
        seconds: list[float] = []
        for name in questions.own if "easyedit" in self._protocols else ():
            said[name] = self._as_easyedit(edited, name, every[name])
        for name in self._forced(questions):
            predicted, taken = self._predicted(edited, every[name])
            said[name] = replace(said[name], predicted=predicted)
            seconds.append(taken)
        if edited.route is not None:
            for name, query in every.items():
                routing = edited.route(self._encoder.encode([query], with_target=False))
                said[name] = replace(
                    said[name],
                    similarity=float(routing.similarity[0]),
                    is_open=bool(routing.is_open[0]),
                )
        for name in self._generated(questions):
            said[name] = replace(said[name], text=self._text(edited, every[name]))
        return Answers(said, median(seconds) if seconds else 0.0)

    def _forced(self, questions: Questions) -> list[str]:
        # The request's forward is what every method is timed by.
        names = list(questions.own) if "visedit" in self._protocols else [METRICS[0]]
        return names + list(questions.ported)

    def _generated(self, questions: Questions) -> list[str]:
        # Under any protocol the page shows what is said to the record's own questions.
        return [*questions.own, *questions.close, *questions.ported]

    def _as_easyedit(self, edited: Edited, name: str, query: Query) -> Said:
        row = joined_row(self._encoder, query)
        logits = _logits(edited.model(**row.inputs))
        if name in IN_SCOPE:
            return Said(accuracy=answer_accuracy(logits, row.labels))
        return Said(likeliest=likeliest(logits, _RANKS[name]).to("cpu", torch.int32))

    def _predicted(self, edited: Edited, query: Query) -> tuple[tuple[int, ...], float]:
        batch = self._encoder.encode([query])
        known = {"layout": batch.layout} if edited.reads_layout else {}
        _wait_for(batch.inputs["input_ids"])
        start = time.perf_counter()
        logits = _logits(edited.model(**batch.inputs, **known))
        _wait_for(logits)
        seconds = time.perf_counter() - start
        answer = batch.target[0, 1:].to(logits.device)
        return tuple(logits[0, :-1].argmax(-1)[answer].tolist()), seconds

    def _text(self, edited: Edited, query: Query) -> str:
        batch = self._encoder.encode([query], with_target=False)
        length = len(self._encoder.target_ids(query.target)) if query.target else 0
        tokens = edited.model.generate(
            **batch.inputs, max_new_tokens=length + _SPARE_TOKENS, do_sample=False
        )
        new = tokens[0, batch.inputs["input_ids"].shape[1] :]
        text: str = self._encoder.tokenizer.decode(new, skip_special_tokens=True)
        return text.strip()


def score(
    questions: Questions,
    before: Answers,
    after: Answers,
    encoder: Encoder,
    protocols: Sequence[Protocol],
) -> dict[str, dict[str, float]]:
    """Return protocol -> metric -> value of one record, 0 to 1.

    A record without questions of a protocol has no entry for it.

    Args:
        questions: of the record.
        before: what the unedited model says.
        after: what the edited model says.
        encoder: knows the tokens of a target.
        protocols: which are measured.
    """
    found: dict[str, dict[str, float]] = {}
    for protocol in protocols:
        values: dict[str, float] = {}
        if protocol == "specificity":
            for family, kinds in FAMILIES.items():
                same = [
                    _same_text(before, after, kind) for kind in kinds if kind in questions.close
                ]
                if same:
                    values[family] = sum(same) / len(same)
        elif protocol == "portability":
            ported = questions.ported.items()
            if ported:
                exact = [exact_match(after.said[n].text or "", q.target or "") for n, q in ported]
                forced = [_accuracy(after, n, q, encoder) for n, q in ported]
                values = {
                    "exact_match": sum(exact) / len(exact),
                    "token_accuracy": sum(forced) / len(forced),
                }
        else:
            values = {
                name: _own(protocol, name, query, before, after, encoder)
                for name, query in questions.own.items()
            }
        if values:
            found[protocol] = values
    return found


def _own(
    protocol: Protocol, name: str, query: Query, before: Answers, after: Answers, encoder: Encoder
) -> float:
    said, was = after.said[name], before.said[name]
    if protocol == "generate":
        if name in IN_SCOPE:
            return exact_match(said.text or "", query.target or "")
        return _same_text(before, after, name)
    if protocol == "visedit":
        if name in IN_SCOPE:
            return _accuracy(after, name, query, encoder)
        return _share(said.predicted or (), was.predicted or ())
    if said.accuracy is not None:
        return said.accuracy
    if said.likeliest is None or was.likeliest is None:
        return 0.0
    return likeliest_agreement(was.likeliest, said.likeliest)


def _accuracy(answers: Answers, name: str, query: Query, encoder: Encoder) -> float:
    return _share(answers.said[name].predicted or (), encoder.target_ids(query.target or ""))


def _same_text(before: Answers, after: Answers, name: str) -> float:
    return float(before.said[name].text == after.said[name].text)


def _share(found: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def _logits(output: Any) -> Tensor:
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def _wait_for(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
