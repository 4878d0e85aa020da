"""Gate states of every kind of query about some records, which teach and test a gate."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.scope import (
    HARD,
    OTHER_IMAGE,
    OTHER_QUESTION,
    SCOPE,
    partners_of,
    scope_queries,
)
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.gate_reading import GateStates, read_gate_states
from easyedit_dualedit.train.gate_rows import ShownKeys

_ASKED_FIRST = (METRICS[0], OTHER_QUESTION, OTHER_IMAGE)
"""Kinds of query whose first answer token says whether they mean the same."""


@dataclass(frozen=True)
class ScopeStates:
    """Gate states of the queries of some records, and which of them may teach.

    Shapes: n records, d hidden size.
    """

    gate: Mapping[str, Tensor]
    """Kind of query -> states of the last prompt tokens, [n, d]."""
    vision: Mapping[str, Tensor]
    """Kind of query -> means of the image tokens, [n, d]; zeros without a picture."""
    text: Mapping[str, Tensor]
    """Kind of query -> what prompts without a picture say, [n, d + l]; zeros with one."""
    counts: dict[str, Tensor]
    """Kind of query -> True where it surely is in or out of scope, bool [n]."""
    partners: Tensor
    """Place of the record whose picture `other_image` shows, long [n], -1 if it is not there: its
    edit may rightly answer."""
    answers: Tensor
    """First token of the unedited model's answer to each request, long [n]."""

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.partners)

    def select(self, rows: Tensor) -> "ScopeStates":
        """Return the states of some records, of which each is there once.

        Args:
            rows: places of the records, on any device, long [r].
        """
        rows = rows.to(self.partners.device)
        place = torch.full((len(self),), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        partners = self.partners[rows]
        return ScopeStates(
            {kind: states[rows] for kind, states in self.gate.items()},
            {kind: states[rows] for kind, states in self.vision.items()},
            {kind: states[rows] for kind, states in self.text.items()},
            {kind: mask[rows] for kind, mask in self.counts.items()},
            torch.where(partners >= 0, place[partners.clamp(min=0)], -1),
            self.answers[rows],
        )


@dataclass(frozen=True)
class ScopeQueries:
    """Every kind of query of `SCOPE` about some records, in one list, kind after kind."""

    queries: list[Query]
    first: list[bool]
    """Whose first answer token has to be read."""
    partners: list[int]
    """Place of the record that the hard queries of each record use."""
    asked: Mapping[str, list[bool]]
    """Kind of hard query -> whether it is what the request of one of the records asks: of the
    record itself, where another shows the same picture or none is shown, or of another one."""

    @classmethod
    def of(cls, records: Sequence[Record], *, seed: int = 0) -> "ScopeQueries":
        """Return the queries of records, without targets: none takes part in what a gate learns."""
        kinds = scope_queries(records, seed=seed)
        queries = [Query(q.prompt, q.image) for kind in SCOPE for q in kinds[kind]]
        first = [kind in _ASKED_FIRST for kind in SCOPE for _ in records]
        key_of = ShownKeys()

        def asks(query: Query) -> Hashable:
            return " ".join(query.prompt.split()), key_of(query)

        requests = {asks(record.request) for record in records}
        asked = {kind: [asks(query) in requests for query in kinds[kind]] for kind in HARD}
        return cls(queries, first, partners_of(len(records), seed=seed), asked)

    def states(self, read: GateStates) -> ScopeStates:
        """Return the states by kind.

        Another record's question may mean the same as the edit's own. It counts as out of scope
        only where the unedited model begins to answer it otherwise, about the picture of either
        record: a few of one meaning that count would push thresholds above every rephrase. So would
        a hard query that is the very request of a record: it never counts.

        Args:
            read: of `queries`.
        """
        count, device = len(self.partners), read.gate.device
        parts = {
            kind: read.of(place * count, (place + 1) * count) for place, kind in enumerate(SCOPE)
        }
        counts = {kind: torch.ones(count, dtype=torch.bool, device=device) for kind in SCOPE}
        partners = torch.tensor(self.partners, device=device)
        # A record that is alone has no other to take a picture or a question from.
        has_partner = partners != torch.arange(count, device=device)
        own, other, elsewhere = (parts[kind].first for kind in _ASKED_FIRST)
        differs = (own != other) & (elsewhere != own[partners])
        counts[OTHER_IMAGE] = has_partner
        counts[OTHER_QUESTION] = differs & has_partner
        for kind, asked in self.asked.items():
            counts[kind] = counts[kind] & ~torch.tensor(asked, dtype=torch.bool, device=device)
        return ScopeStates(
            {kind: part.gate for kind, part in parts.items()},
            {kind: part.vision for kind, part in parts.items()},
            {kind: part.text for kind, part in parts.items()},
            counts,
            partners,
            own,
        )


def collect(
    editor: DualEditor,
    records: Sequence[Record],
    *,
    seed: int = 0,
    autocast: str = "none",
    progress: bool = True,
) -> ScopeStates:
    """Return the gate states of every kind of query of `SCOPE`.

    Args:
        editor: whose gate reads.
        records: at least one.
        seed: of who is whose partner.
        autocast: as in `TrainingConfig`.
        progress: whether to show a bar.
    """
    asked = ScopeQueries.of(records, seed=seed)
    read = read_gate_states(
        editor, asked.queries, first=asked.first, autocast=autocast, progress=progress
    )
    return asked.states(read)
