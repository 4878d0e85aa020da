"""Edits are read some at a time: as many as share a forward that fits into memory."""

from collections.abc import Iterator, Sequence

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.editor import DualEditor, require_targets
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.video_frames import by_length

MOST_AT_ONCE = 16
"""Requests that share a forward at most: enough to be fast."""


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
