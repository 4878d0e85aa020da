"""What is measured: an edit, and training steps that have seen their pictures or queries before."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.subject import PUBLISHED, Shapes, editor_of, records_of
from benchmarks.work import counted, reads_of
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.train.config import CACHE_BYTES, TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

TRAINING = TrainingConfig(text_locality_weight=0.0, end_of_answer=False)
"""The loss terms of the published code."""

STATE_BUDGETS = {"pictures": 0, "queries": CACHE_BYTES}
"""What a training step has seen before -> bytes of frozen states to keep."""


def tasks(
    editor: DualEditor, shapes: Shapes = PUBLISHED, batch: int = PUBLISHED.batch
) -> dict[str, Callable[[], object]]:
    """Return an edit, and training steps that have seen their pictures or queries before."""
    records = records_of(batch, shapes.side)
    found: dict[str, Callable[[], object]] = {"edit": lambda: editor.read([records[0].request])}
    for name, budget in STATE_BUDGETS.items():
        steps = TrainingStep(editor, state_budget=budget)
        found[f"training step, {name} seen before"] = partial(forth_and_back, steps, records)
    return found


def forth_and_back(steps: TrainingStep, records: Sequence[Record]) -> None:
    """Run the losses of one batch and their gradients."""
    steps.losses(records, TRAINING).total.backward()  # type: ignore[no-untyped-call]


def count_work(shapes: Shapes = PUBLISHED) -> dict[str, dict[str, Any]]:
    """Return how often each of `tasks` runs the parts of a model, for batches as published."""
    editor = editor_of(shapes)
    found = {}
    for name, task in tasks(editor, shapes).items():
        task()  # the first step compares itself with whole forwards
        with counted(editor.backbone) as count:
            reads = reads_of(task)
        found[name] = asdict(count) | {"reads": reads}
    return found
