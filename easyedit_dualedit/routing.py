"""How well a gate tells many edits apart, and what that costs: no adapter runs here."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.nn import functional

from easyedit_dualedit.applied import AppliedEdits
from easyedit_dualedit.editor import DualEditor
from easyedit_dualedit.gate_training import ScopeStates, collect
from easyedit_dualedit.memory import ActiveEdits
from easyedit_dualedit.projection import vision_mean
from easyedit_dualedit.records import METRICS, Record
from easyedit_dualedit.scope import IN_SCOPE, OTHER_IMAGE, SCOPE
from easyedit_dualedit.stored import Provenance, StoredEdit

_NOWHERE = Provenance("", "", "", ())
REPEATS = 300
_FORWARDS = 60


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
    editor: DualEditor, record: Record, counts: Sequence[int], repeats: int = REPEATS
) -> dict[str, Any]:
    """Return what a decision among many edits costs, on one row and one thread of a processor.

    Keys and states are random, but for the edit of the query that an edit concerns: the last one.
    The forward is that of the unedited model on the record's request, without its target.

    Returns:
        `forward_seconds`; and, for a query that no edit concerns (`closed`) and one that an edit
        does (`open`), by number of edits `seconds` (everything that routing adds to a forward: the
        mean over the image tokens, the query's key, the products, the choice) and `share` of the
        forward; all medians, taken in turns so that a busy machine slows all.
    """
    batch = editor.encoder.encode([record.request], with_target=False)
    model, device = editor.backbone.model, editor.backbone.device
    source = torch.Generator().manual_seed(editor.config.text_layer)
    shape = (1, batch.inputs["input_ids"].shape[1], editor.backbone.hidden_size)
    queries = {name: torch.randn(shape, generator=source).to(device) for name in ("closed", "open")}
    gate = batch.layout.gate.to(device)
    own = editor.gate.key(
        queries["open"][:, gate[0]], vision_mean(queries["open"], batch.layout.vision)
    )
    routes: dict[tuple[str, int], Callable[[], object]] = {}
    for count in counts:
        drawn = torch.randn(count, own.shape[-1], generator=source).to(device)
        keys = torch.cat([functional.normalize(drawn[1:], dim=-1), own])
        edits = [StoredEdit(str(place), _NOWHERE, key, {}) for place, key in enumerate(keys)]
        memory = ActiveEdits.of_stored(edits, device)
        applied = AppliedEdits(editor.backbone, editor.adapters, editor.gate, memory)
        for name, hidden in queries.items():
            routes[name, count] = partial(applied.open_rows, hidden, batch.layout)
    taken: dict[tuple[str, int], list[float]] = {case: [] for case in routes}
    forwards = []
    for turn in range(repeats):
        if turn % max(1, repeats // _FORWARDS) == 0:
            forwards.append(_seconds(lambda: model(**batch.inputs, use_cache=False)))
        for case, route in routes.items():
            route()  # what a forward has left in the caches is not the same for all
            taken[case].append(_seconds(route))
    forward = median(forwards)
    found: dict[str, Any] = {"forward_seconds": forward}
    for name in queries:
        seconds = {count: median(taken[name, count]) for count in counts}
        shares = {count: each / forward for count, each in seconds.items()}
        found[name] = {"seconds": seconds, "share": shares}
    return found


def _rates(editor: DualEditor, states: ScopeStates, count: int) -> dict[str, float]:
    right: dict[str, list[float]] = {kind: [] for kind in SCOPE}
    for start in range(0, len(states) - count + 1, count):
        rows = torch.arange(start, start + count, device=states.partners.device)
        part = states.select(rows)
        request = METRICS[0]
        edits = editor.gate.key(part.gate[request], part.vision[request])
        own = torch.arange(count, device=edits.device)
        for kind in SCOPE:
            routing = editor.gate.route(part.gate[kind], edits, vision=part.vision[kind])
            chosen = routing.edit_index
            if kind in IN_SCOPE:
                wanted = chosen == own
            elif kind == OTHER_IMAGE:
                wanted = (chosen >= 0) & (chosen != part.partners)
            else:
                wanted = chosen >= 0
            right[kind] += wanted[part.counts[kind]].float().tolist()
    return {kind: sum(found) / len(found) if found else 0.0 for kind, found in right.items()}


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
