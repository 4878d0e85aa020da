"""Asks a model the queries of a record before and after its edit, and scores the answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.measure.metrics import answer_agreement, exact_match, token_accuracy
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.method.edited_model import EditedModel
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Batch, Query

_SPARE_TOKENS = 8


@dataclass(frozen=True)
class Answers:
    """What a model says to the queries of n records, k rows a record."""

    generated: tuple[str, ...]
    """Greedy answers to the prompts alone, n k."""
    logits: Tensor
    """Teacher-forced, [n k, s, v]."""


@dataclass(frozen=True)
class Case:
    """One record under one method."""

    values: Mapping[str, Mapping[str, float]]
    """Protocol -> metric -> value, 0 to 1."""
    answers: tuple[str, ...]
    """Generated, in the order of `names`."""
    similarity: tuple[float, ...]
    """Of each query to the edit; empty without an edit."""
    is_open: tuple[bool, ...]
    """Whether the gate opened for each query; empty without an edit."""
    names: tuple[str, ...] = METRICS
    """What each query measures."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "values": {protocol: dict(found) for protocol, found in self.values.items()},
            "answers": dict(zip(self.names, self.answers, strict=True)),
            "gate": {
                metric: {"similarity": similarity, "open": is_open}
                for metric, similarity, is_open in zip(
                    self.names, self.similarity, self.is_open, strict=False
                )
            },
        }


class RecordQueries:
    """The queries of a few records, encoded once for every method that is tried on them.

    The records share forwards but nothing else: each is answered by its own edited model.
    """

    def __init__(
        self,
        encoder: Encoder,
        records: Sequence[Record],
        further: Sequence[Mapping[str, Query]] | None = None,
    ):
        """Encode the queries with and without their targets.

        Args:
            encoder: encodes for the model that is edited.
            records: whose five queries are asked.
            further: more queries of each record by what they measure, the same kinds in the same
                order for each; all are compared with the unedited model, as locality is.

        Raises:
            DataError: if a picture cannot be read or a target tokenises to nothing.
        """
        self._encoder = encoder
        further = [{} for _ in records] if further is None else further
        self.names = (*METRICS, *(further[0] if further else ()))
        """What each of a record's queries measures."""
        self.queries = [
            query
            for record, more in zip(records, further, strict=True)
            for query in (*record.queries, *more.values())
        ]
        """All queries, record by record."""
        self._forced: Batch = encoder.encode(self.queries)
        self._prompts: Batch = encoder.encode(self.queries, with_target=False)
        longest = self._forced.target.sum(1).view(-1, len(self.names)).amax(1) + _SPARE_TOKENS
        self._new_tokens: list[int] = longest.repeat_interleave(len(self.names)).tolist()
        self.before = self.answers(encoder.backbone.model)
        """What the unedited model says."""

    @torch.no_grad()
    def answers(self, model: Any) -> Answers:
        """Return what a model says to the queries."""
        tokens = model.generate(
            **self._prompts.inputs, max_new_tokens=max(self._new_tokens), do_sample=False
        )
        new = tokens[:, self._prompts.inputs["input_ids"].shape[1] :]
        # As many tokens as the record would get on its own.
        answers = [row[:limit] for row, limit in zip(new, self._new_tokens, strict=True)]
        texts = self._encoder.tokenizer.batch_decode(answers, skip_special_tokens=True)
        known = {"layout": self._forced.layout} if isinstance(model, EditedModel) else {}
        logits = model(**self._forced.inputs, **known).logits
        return Answers(tuple(text.strip() for text in texts), logits)

    def cases(self, models: Sequence[EditedModel | None]) -> list[Case]:
        """Return each record's case under its edited model, or None for the unedited one.

        Locality compares with `before`, which is asked in the same batch, so a closed gate gives
        agreement bit for bit.

        Args:
            models: one a record, each with a single edit; or None for every record.
        """
        edited = [model for model in models if model is not None]
        if not edited:
            return self._scored(self.before, None)
        together = EditedModel.side_by_side(edited, len(self.names))
        routing = together.route(layout=self._prompts.layout, **self._prompts.inputs)
        return self._scored(self.answers(together), routing)

    def _scored(self, after: Answers, routing: Routing | None) -> list[Case]:
        labels = self._forced.labels
        accuracy = token_accuracy(after.logits, labels)
        agreement = answer_agreement(self.before.logits, after.logits, labels)
        similarity = routing.similarity.tolist() if routing else []
        is_open = routing.is_open.tolist() if routing else []
        count = len(self.names)
        cases = []
        for start in range(0, len(self.queries), count):
            forced, generated = {}, {}
            for row, metric in enumerate(self.names, start):
                answer, before = after.generated[row], self.before.generated[row]
                if metric not in IN_SCOPE:
                    forced[metric] = agreement[row]
                    generated[metric] = float(answer == before)
                else:
                    forced[metric] = accuracy[row]
                    generated[metric] = exact_match(answer, self.queries[row].target or "")
            own = slice(start, start + count)
            cases.append(
                Case(
                    {"visedit": forced, "generate": generated},
                    after.generated[own],
                    tuple(similarity[own]),
                    tuple(is_open[own]),
                    self.names,
                )
            )
        return cases


Method = Callable[[Record], EditedModel | None]
"""Makes the edit of a record and returns the edited model; None stands for the unedited one."""


def evaluate(
    records: Sequence[Record],
    encoder: Encoder,
    methods: Mapping[str, Method],
    run: Run,
    *,
    further: Mapping[int, Mapping[str, Query]] | None = None,
    batch_size: int = 10,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Return the case of every record under every method, each stored as soon as it is known.

    Cases that `run` already holds are not made again.

    Args:
        records: what to edit and to ask.
        encoder: encodes for the model that is edited.
        methods: by name, in the order of the table.
        run: where cases are stored.
        further: more queries of each record, by its index; see `RecordQueries`.
        batch_size: records whose queries share a forward; each still sees its own edit alone.
        progress: whether to show a bar.

    Raises:
        DataError: if a picture cannot be read or a target tokenises to nothing.
    """
    found = {record.index: run.case(record.index) for record in records}
    with tqdm(total=len(records), desc="editing", unit="edit", disable=not progress) as bar:
        for start in range(0, len(records), batch_size):
            # The same batches however often a run was stopped: rounding depends on them.
            chosen = records[start : start + batch_size]
            if any(found[record.index] is None for record in chosen):
                more = None if further is None else [further[record.index] for record in chosen]
                made = _cases(chosen, RecordQueries(encoder, chosen, more), methods)
                for record, case in zip(chosen, made, strict=True):
                    if found[record.index] is None:
                        run.store(record.index, case)
                        found[record.index] = case
            bar.update(len(chosen))
    return [case for case in found.values() if case is not None]


def _cases(
    records: Sequence[Record], queries: RecordQueries, methods: Mapping[str, Method]
) -> list[dict[str, Any]]:
    count = len(queries.names)
    by_method = {
        name: queries.cases([method(record) for record in records])
        for name, method in methods.items()
    }
    stored = []
    for place, record in enumerate(records):
        own = slice(place * count, (place + 1) * count)
        shown = {}
        for metric, query in zip(queries.names, queries.queries[own], strict=True):
            image = query.image.name if isinstance(query.image, Path) else None
            shown[metric] = {"prompt": query.prompt, "image": image, "target": query.target}
        stored.append(
            {
                "index": record.index,
                "queries": shown,
                "before": dict(zip(queries.names, queries.before.generated[own], strict=True)),
                "methods": {name: cases[place].to_dict() for name, cases in by_method.items()},
            }
        )
    return stored
