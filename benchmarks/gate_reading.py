"""What the gate's stage of a training reads, by rows of their own and as it is: work and time.

    python -m benchmarks.gate_reading --model FOLDER --data train.json --images pictures/ \
        --text-layer 15 --dtype bfloat16

Both sides run in this process on one core: the first half of the records row by row, then all of
them as training reads them, then the second half row by row.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.work import counted
from easyedit_dualedit import DualEditConfig, DualEditor, load_model
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.scope import SCOPE
from easyedit_dualedit.model.answers import first_answer_tokens
from easyedit_dualedit.train.gate_reading import plain_gate_states
from easyedit_dualedit.train.scope_states import ScopeQueries, collect

_ROWS = 32
"""Rows of a forward, where each query is a row of its own."""


@dataclass
class ReadingCost:
    """What reading some records took."""

    records: int = 0
    queries: int = 0
    pictures: int = 0
    """Through the vision tower."""
    rows: int = 0
    """Through the first decoder layer."""
    tokens: int = 0
    """Through the first decoder layer, padding included."""
    layer_tokens: int = 0
    """Through all decoder layers."""
    seconds: float = 0.0
    """Of the processor."""


def row_by_row(editor: DualEditor, records: Sequence[Record]) -> None:
    """Read records kind after kind, each query a row of its own, first answers by whole forwards.

    Args:
        editor: whose gate reads.
        records: at least one.
    """
    asked = ScopeQueries.of(records)
    count = len(records)
    for place in range(len(SCOPE)):
        queries = asked.queries[place * count : (place + 1) * count]
        for start in range(0, count, _ROWS):
            plain_gate_states(editor, queries[start : start + _ROWS])
        if asked.first[place * count]:
            first_answer_tokens(editor.encoder, queries)


def costs(editor: DualEditor, records: Sequence[Record]) -> dict[str, ReadingCost]:
    """Return what reading records costs, by the name of how they are read."""
    half = len(records) // 2
    plain, shared = ReadingCost(), ReadingCost()
    with torch.no_grad():
        _add(plain, editor, records[:half], row_by_row)
        _add(shared, editor, records, lambda e, r: collect(e, r, progress=False))
        _add(plain, editor, records[half:], row_by_row)
    return {"a row each": plain, "shared": shared}


def _add(
    cost: ReadingCost,
    editor: DualEditor,
    records: Sequence[Record],
    read: Callable[[DualEditor, Sequence[Record]], object],
) -> None:
    with counted(editor.backbone) as work, _tokens(editor, cost):
        start = time.process_time()
        read(editor, records)
        cost.seconds += time.process_time() - start
    cost.records += len(records)
    cost.queries += len(SCOPE) * len(records)
    cost.pictures += work.vision
    cost.rows += work.frozen_rows


@contextmanager
def _tokens(editor: DualEditor, cost: ReadingCost) -> Iterator[None]:
    def seen(first: bool) -> Callable[[Any, Any, Any], None]:
        def note(_module: Any, _args: Any, output: Any) -> None:
            tokens = output[0].shape[0] * output[0].shape[1]
            cost.layer_tokens += tokens
            cost.tokens += tokens if first else 0

        return note

    handles = [
        layer.self_attn.register_forward_hook(seen(place == 0))  # type: ignore[union-attr, operator]
        for place, layer in enumerate(editor.backbone.layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def table(found: dict[str, ReadingCost]) -> str:
    """Return costs a record as Markdown."""
    lines = [
        "| | tower passes | rows | tokens | tokens times layers | seconds | queries a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cost in found.items():
        each = (cost.pictures, cost.rows, cost.tokens, cost.layer_tokens)
        shown = " | ".join(f"{value / cost.records:,.1f}" for value in each)
        rate = cost.queries / max(cost.seconds, 1e-9)
        lines.append(f"| {name} | {shown} | {cost.seconds / cost.records:.3f} | {rate:.1f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, each number but the last a record's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--text-layer", type=int, required=True)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=40)
    given = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    records = load_records(given.data, given.images, limit=given.count)
    dtype = getattr(torch, given.dtype)
    model, processor = load_model(given.model, device="cpu", dtype=dtype)
    layers = {"text_layer": given.text_layer, "vision_layer": given.text_layer}
    editor = DualEditor(model, processor, DualEditConfig(**layers))
    head = f"{len(records)} records, {given.dtype}, one core; each a record's\n\n"
    sys.stdout.write(f"{head}{table(costs(editor, records))}\n")


if __name__ == "__main__":
    main()
