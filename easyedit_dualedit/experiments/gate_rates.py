"""How well a gate tells many edits apart, and what that costs: no adapter runs here."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.data.scope import IN_SCOPE, OTHER_IMAGE, SCOPE
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.stored_edit import Provenance, StoredEdit
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import TokenLayout
from easyedit_dualedit.train.gate_reading import read_gate_states
from easyedit_dualedit.train.scope_states import ScopeStates, collect

REPEATS = 300
_FORWARDS = 60
_QUERIES = 16
_ASKED = {"closed": "image_locality", "open": "text_rephrase"}


@torch.no_grad()
def routing_rates(
    editor: DualEditor, records: Sequence[Record], counts: Sequence[int], *, progress: bool = True
) -> dict[int, dict[str, float]]:
    """Return what the gate does with every kind of query among each number of edits.

    The records are taken in groups of `count`, each a memory of its own; a rest is left out.

    Returns:
        count -> kind of query of `SCOPE` -> share, 0 to 1: of queries in scope, those routed to
        their own edit; of the others, those that open the gate for any edit, but for the one whose
        picture `other_image` shows.
    """
    states = collect(editor, records, progress=progress)
    return {count: _rates(editor, states, count) for count in counts if count <= len(states)}


@torch.no_grad()
def routing_costs(
    editor: DualEditor, records: Sequence[Record], counts: Sequence[int], repeats: int = REPEATS
) -> dict[str, Any]:
    """Return what a decision among many edits costs, on one row and one thread of a processor.

    The edits are those of the first records, and the queries are rephrases of some of them, which
    an edit concerns, and their image localities, which none does. The forward is that of the
    unedited model on the first request, without its target.

    Args:
        editor: whose gate decides.
        records: as many as the largest count.
        counts: numbers of edits.
        repeats: decisions among each number of edits.

    Returns:
        `forward_seconds`; and, for queries that no edit concerns (`closed`) and ones that an edit
        does (`open`), by number of edits `seconds` (everything that routing adds to a forward: the
        mean over the image tokens, the query's key, the products, the choice) and `share` of the
        forward; all medians, taken in turns so that a busy machine slows all.

        A query that the gate decides wrongly is not timed; a count without any is left out.

    Raises:
        DataError: if there are fewer records than edits.
    """
    if len(records) < max(counts):
        raise DataError(
            f"{max(counts)} edits to route among need as many records, not {len(records)}"
        )
    read = read_gate_states(editor, [record.request for record in records[: max(counts)]])
    read = read.of(0, max(counts))
    keys = editor.gate.key(read.gate, read.vision, read.text)
    cases = [(name, count) for name in _ASKED for count in counts]
    decisions = {case: _decisions(editor, records, keys, *case) for case in cases}
    batch = editor.encoder.encode([records[0].request], with_target=False)
    model = editor.backbone.model
    taken: dict[tuple[str, int], list[float]] = {case: [] for case in decisions}
    forwards = []
    for turn in range(repeats):
        if turn % max(1, repeats // _FORWARDS) == 0:
            forwards.append(_seconds(lambda: model(**batch.inputs, use_cache=False)))
        for case, ways in decisions.items():
            if not ways:
                continue
            decide = ways[turn % len(ways)]
            decide()  # what a forward has left in the caches is not the same for all
            taken[case].append(_seconds(decide))
    forward = median(forwards)
    costs: dict[str, Any] = {"forward_seconds": forward}
    for name in _ASKED:
        seconds = {count: median(taken[name, count]) for count in counts if taken[name, count]}
        shares = {count: each / forward for count, each in seconds.items()}
        costs[name] = {"seconds": seconds, "share": shares}
    return costs


def edits_with(keys: Tensor) -> list[StoredEdit]:
    """Return edits of which a gate knows the keys, each of a question of its own."""
    return [
        StoredEdit(str(place), Provenance("", str(place), "", ()), key, {})
        for place, key in enumerate(keys)
    ]


def _decisions(
    editor: DualEditor, records: Sequence[Record], keys: Tensor, name: str, count: int
) -> list[Callable[[], dict[int, int]]]:
    """Return decisions about some queries among the first edits, those that are right."""
    active = ActiveEdits.of_stored(edits_with(keys[:count]), editor.adapters, editor.gate)

    def decision(hidden: Tensor, layout: TokenLayout) -> dict[int, int]:
        return active.decide(hidden, layout).open_rows()

    decisions: list[Callable[[], dict[int, int]]] = []
    for place, one in enumerate(records[: min(_QUERIES, count)]):
        batch = editor.encoder.encode([getattr(one, _ASKED[name])], with_target=False)
        with record(editor.backbone.layers, [active.gate_layer], stop=True) as seen:
            editor.backbone.model(**batch.inputs, use_cache=False)
        decide = partial(decision, seen[active.gate_layer], batch.layout)
        if decide() == ({} if name == "closed" else {0: place}):
            decisions.append(decide)
    return decisions


def _rates(editor: DualEditor, states: ScopeStates, count: int) -> dict[str, float]:
    right: dict[str, list[float]] = {kind: [] for kind in SCOPE}
    for start in range(0, len(states) - count + 1, count):
        rows = torch.arange(start, start + count, device=states.partners.device)
        part = states.select(rows)
        request = METRICS[0]
        edits = editor.gate.key(part.gate[request], part.vision[request], part.text[request])
        own = torch.arange(count, device=edits.device)
        for kind in SCOPE:
            vision, text = part.vision[kind], part.text[kind]
            routing = editor.gate.route(part.gate[kind], edits, vision=vision, text=text)
            chosen = routing.edit_index
            if kind in IN_SCOPE:
                wanted = chosen == own
            elif kind == OTHER_IMAGE:
                wanted = (chosen >= 0) & (chosen != part.partners)
            else:
                wanted = chosen >= 0
            right[kind] += wanted[part.counts[kind]].float().tolist()
    return {kind: sum(each) / len(each) if each else 0.0 for kind, each in right.items()}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
