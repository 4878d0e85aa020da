"""Whether an edit takes: whether the edited model answers the edit's own request with its target.

An adapter may carry the meaning of a target and lose the word, and a gate may stay closed for the
edit's own question. Nobody should rely on such an edit, so it can be asked about right away.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.stored_edit import StoredEdit
from easyedit_dualedit.model.answers import answer_limit, exact_match, greedy_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.video_frames import batches_by_length

_AT_ONCE = 16
"""Requests that share a forward at most; fewer where the memory has no room for their tokens."""


@dataclass(frozen=True)
class EditCheck:
    """What the edited model answers to the request of an edit, and why."""

    request: Query
    answer: str
    """Greedy, to the prompt and picture alone."""
    similarity: float
    """Of the request to the best edit, by the gate."""
    is_open: bool
    """Whether the gate opened."""
    other: str | None = None
    """Prompt and target of the edit that answered, if it was another one."""

    @property
    def takes(self) -> bool:
        """Whether the answer is the target, but for case, white space and a final stop."""
        return exact_match(self.answer, self.request.target or "") == 1.0

    def told(self) -> str:
        """Return in one line what was asked, what the model answers, and what can be done."""
        asked = f"asked {self.request.prompt!r}, the edited model answers {self.answer!r}"
        if self.takes:
            return f"the edit takes: {asked}"
        if self.other is not None:
            why = f"another edit answers ({self.other}): remove that one"
        elif self.is_open:
            why = (
                "the gate is open, and the adapters do not carry this answer: word it otherwise, or"
                " train adapters on records with answers like it"
            )
        else:
            why = (
                f"the gate is closed (similarity {self.similarity:.3f}): set a lower threshold or"
                " another kind of gate"
            )
        return f"the edit does not take: {asked}, not {self.request.target!r}; {why}"


def checked(
    model: Any, encoder: Encoder, requests: Sequence[Query] | None = None
) -> list[EditCheck]:
    """Return for each request what an edited model answers to it.

    Args:
        model: an `EditedModel`.
        encoder: of the base model.
        requests: of edits; None takes those of the model's edits, if they are not stored ones.

    Raises:
        DataError: if a request is not known or has no target, or its picture cannot be read.
    """
    asked = _requests_of(model.edits) if requests is None else list(requests)
    for request in asked:
        if not request.target:
            raise DataError(f"the request {request.prompt!r} has no target; give the answer")
    budget = RowBudget.of(encoder.backbone)
    checks: dict[int, EditCheck] = {}
    for part in batches_by_length(asked, encoder.clip_of, _AT_ONCE):
        group = [asked[place] for place in part]
        limits = [answer_limit(encoder, request) for request in group]
        real = encoder.encode(group, with_target=False).layout.real.sum(1).tolist()
        lengths = [length + limit for length, limit in zip(real, limits, strict=True)]

        def check(places: list[int], part: list[int] = part) -> None:
            chosen = [part[place] for place in places]
            found = _checked_together(model, encoder, [asked[place] for place in chosen])
            checks.update(zip(chosen, found, strict=True))

        budget.run(range(len(group)), lengths, check)
    return [checks[place] for place in range(len(asked))]


@torch.no_grad()
def _checked_together(model: Any, encoder: Encoder, requests: Sequence[Query]) -> list[EditCheck]:
    batch = encoder.encode(requests, with_target=False)
    limits = [answer_limit(encoder, request) for request in requests]
    with undisturbed(encoder.backbone.model):
        routing = model.route(layout=batch.layout, **batch.inputs)
        answers = greedy_answers(model, encoder, batch, limits)
    decided = zip(routing.similarity.tolist(), routing.edit_index.tolist(), strict=True)
    checks = []
    for request, answer, (similarity, place) in zip(requests, answers, decided, strict=True):
        fired = None if place < 0 else _asked_by(model.edits[place])
        is_other = fired is not None and fired != (request.prompt, request.target)
        other = f"{fired[0]!r} -> {fired[1]!r}" if is_other and fired is not None else None
        checks.append(EditCheck(request, answer, similarity, place >= 0, other))
    return checks


def _requests_of(edits: Sequence[EditSignal | StoredEdit]) -> list[Query]:
    """Return what edits asked for.

    Raises:
        DataError: if that is not known.
    """
    requests = [edit.request if isinstance(edit, EditSignal) else None for edit in edits]
    known = [request for request in requests if request is not None]
    if len(known) < len(requests):
        raise DataError(
            f"{len(requests) - len(known)} edits do not hold their requests (stored edits keep no"
            " pictures); give the requests"
        )
    return known


def _asked_by(edit: EditSignal | StoredEdit) -> tuple[str, str | None] | None:
    """Return prompt and target of an edit, if they are known."""
    if isinstance(edit, StoredEdit):
        return edit.provenance.prompt, edit.provenance.target
    return None if edit.request is None else (edit.request.prompt, edit.request.target)


__all__ = ["EditCheck", "checked"]
