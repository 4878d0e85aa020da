"""Edits are read some at a time: as many as share a forward that fits into memory."""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from easyedit_dualedit.errors import DataError, no_request
from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal, keys_of
from easyedit_dualedit.method.editor import DualEditor, require_targets
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.packing import Packed, Precision
from easyedit_dualedit.method.stored_edit import (
    PackedProjection,
    Provenance,
    StoredEdit,
    picture_hashes,
)
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.video_frames import by_length

MOST_AT_ONCE = 16
"""Requests that share a forward at most: enough to be fast."""

_ID_BYTES = 6


def listed(requests: Any) -> list[Query]:
    """Return one request, or several, as a list.

    Raises:
        DataError: if one of them is no request.
    """
    is_one = isinstance(requests, Query | str | Mapping) or not isinstance(requests, Iterable)
    every = [requests] if is_one else list(requests)
    for each in every:
        if not isinstance(each, Query):
            raise no_request(each)
    return every


def read_some_at_a_time(
    editor: DualEditor, requests: Sequence[Query], budget: RowBudget | None = None
) -> Iterator[tuple[Sequence[Query], list[EditSignal]]]:
    """Yield the requests in parts, in order, with the edit signals of each part.

    Args:
        editor: reads them.
        requests: each with a target.
        budget: of tokens that share a forward; None is what the memory has room for.

    Raises:
        DataError: if a request has no target, or a picture cannot be read.
    """
    require_targets(requests)
    budget = RowBudget.of(editor.backbone) if budget is None else budget
    for start in range(0, len(requests), MOST_AT_ONCE):
        part = requests[start : start + MOST_AT_ONCE]
        yield part, _read(editor, part, budget)


def read_to_store(
    editor: DualEditor, requests: Sequence[Query], gate: Gate, precision: Precision
) -> list[StoredEdit]:
    """Return the edits of requests as a memory keeps them, each with an id of its own.

    Args:
        editor: reads them.
        requests: each with a target.
        gate: their keys are for.
        precision: of their numbers.

    Raises:
        DataError: if a request has no target, a picture cannot be read, or the model's activations
            are not finite.
    """
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    made: list[StoredEdit] = []
    for chosen, signals in read_some_at_a_time(editor, requests):
        with torch.no_grad():
            active = ActiveEdits.of(signals, editor.adapters, gate)
            for place, (signal, request) in enumerate(zip(signals, chosen, strict=True)):
                asked = (request.prompt, request.target or "", picture_hashes(request))
                about = Provenance(time, *asked)
                made.append(_stored(place, signal, about, active, precision))
    return made


def _stored(
    place: int, signal: EditSignal, about: Provenance, active: ActiveEdits, precision: Precision
) -> StoredEdit:
    row = torch.tensor([place], device=active.keys.device)
    key = keys_of([signal], active.gate)[0].float().cpu()
    numbers, projected = [key], {}
    for modality, projections in active.projected.items():
        one = projections.select(row)
        parts = [each[0][:, one.mask[0]].cpu() for each in (one.keys, one.values)]
        numbers += parts
        projected[modality] = PackedProjection(*(Packed.of(part, precision) for part in parts))
    if not all(bool(part.isfinite().all()) for part in numbers):
        raise DataError(
            f"the edit {about.prompt!r} -> {about.target!r} cannot be kept: the model's activations"
            " are NaN or infinite there; load it in another dtype (float32 or bfloat16 for float16)"
        )
    words = tuple(signal.words.tolist()) if active.adapters.has_words else ()
    return StoredEdit(secrets.token_hex(_ID_BYTES), about, key, projected, words)


def _read(editor: DualEditor, part: Sequence[Query], budget: RowBudget) -> list[EditSignal]:
    signals: dict[int, EditSignal] = {}
    for alike in by_length(part, editor.encoder.clip_of):
        whole = editor.encoder.encode([part[place] for place in alike])

        def read(places: list[int], alike: list[int] = alike, whole: Batch = whole) -> None:
            chosen = [part[alike[place]] for place in places]
            batch = whole if len(places) == len(alike) else editor.encoder.encode(chosen)
            found = editor.read_batch(batch, chosen)
            signals.update(zip([alike[place] for place in places], found, strict=True))

        budget.run(range(len(alike)), whole.layout.real.sum(1).tolist(), read)
    return [signals[place] for place in range(len(part))]
