"""How work and memory grow with layers, tokens, batch, target length, edits and records.

    python -m benchmarks.growth

counts the operations of matrix products and attention, and the most bytes of tensors alive at once,
on small models on the CPU. No time is taken, so that each number is the same on every machine.
"Of the edit" is what an edited forward does beyond a plain one: attention within the model itself
grows with the square of its tokens, whatever is done to it.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.device_subject import TINY
from benchmarks.live_bytes import LiveBytes
from benchmarks.subject import Shapes, editor_of, records_of
from easyedit_dualedit.measure.evaluation import evaluate_together
from easyedit_dualedit.measure.panel import Panel
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

_SLACK = 1.1
"""Over linear; bias and rounding."""


@dataclass(frozen=True)
class Growth:
    """One quantity at growing sizes."""

    axis: str
    what: str
    sizes: Sequence[int]
    values: Sequence[float]

    @property
    def factor(self) -> float:
        """How often the last value is the first, by how often the last size is the first."""
        return (self.values[-1] / self.values[0]) / (self.sizes[-1] / self.sizes[0])

    @property
    def is_linear(self) -> bool:
        """Whether it grows no faster than its size."""
        return self.factor <= _SLACK


def arithmetic_of(work: Callable[[], Any]) -> float:
    """Return the operations of matrix products and attention in some work."""
    with FlopCounterMode(display=False) as operations:
        work()
    return float(operations.get_total_flops())


def bytes_of(work: Callable[[], Any]) -> float:
    """Return the most bytes that some work had alive at once."""
    with LiveBytes() as live:
        work()
    return float(live.peak)


def counted(work: Callable[[], Any]) -> tuple[float, float]:
    """Return operations of some work, and the most bytes that it had alive at once."""
    return arithmetic_of(work), bytes_of(work)


def growths() -> list[Growth]:
    """Return how everything grows."""
    return [
        *_forward("layers", (4, 16), lambda n: (replace(TINY, layers=n), _query(), 1, 1)),
        *_forward("image tokens", (16, 256), _with_tokens, plain=False),
        *_forward("rows of a batch", (1, 4), lambda n: (TINY, _query(), n, 1)),
        *_forward("tokens of the target", (4, 16), lambda n: (TINY, _query(n), 1, 1)),
        *_forward("edits", (8, 32), lambda n: (TINY, _query(), 1, n)),
        *_step("records of a step", (1, 4)),
        *_evaluation("records of a file", (1, 2)),
    ]


Case = tuple[Shapes, Query, int, int]
"""A model, the edit, rows that ask about it, and edits in force."""


def _query(words: int = 2) -> Query:
    request = records_of(1, TINY.side)[0].request
    return replace(request, target=" ".join(["red"] * words))


def _with_tokens(count: int) -> Case:
    side = 14 * round(count**0.5)
    request = records_of(1, side)[0].request
    return replace(TINY, side=side), request, 1, 1


@torch.no_grad()
def _one_forward(
    shapes: Shapes, request: Query, rows: int, edits: int
) -> tuple[float, float, float, float]:
    """Return operations of an edited forward, of its edit, of reading, and bytes of the first."""
    editor = editor_of(shapes)
    edited = editor.edited(editor.read([request]) * edits)
    batch = editor.encoder.encode([replace(request, target=None)] * rows)
    model = editor.backbone.model
    plain = arithmetic_of(lambda: model(**batch.inputs, use_cache=False))
    changed, peak = counted(lambda: edited(layout=batch.layout, **batch.inputs, use_cache=False))
    read = arithmetic_of(lambda: editor.edited(editor.read([request] * edits)))
    return changed, changed - plain, read, peak


def _forward(
    axis: str, sizes: Sequence[int], case_of: Callable[[int], Case], *, plain: bool = True
) -> list[Growth]:
    """Return how an edited forward grows, what the edit adds to it, and reading the edit."""
    whole, added, reading, memory = zip(*(_one_forward(*case_of(n)) for n in sizes), strict=True)
    found = [Growth(axis, "operations of the edit", sizes, added)]
    if plain:
        found += [
            Growth(axis, "operations of an edited forward", sizes, whole),
            Growth(axis, "operations of reading", sizes, reading),
            Growth(axis, "bytes of an edited forward", sizes, memory),
        ]
    return found


def _step(axis: str, sizes: Sequence[int]) -> list[Growth]:
    """Return how a training step grows."""
    work, memory = zip(*map(_one_step, sizes), strict=True)
    return [Growth(axis, "operations", sizes, work), Growth(axis, "bytes", sizes, memory)]


def _one_step(size: int) -> tuple[float, float]:
    config = TrainingConfig(batch_size=size, feature_cache_bytes=0, state_cache_bytes=0)
    step = TrainingStep.within(editor_of(TINY), config)
    records = records_of(size, TINY.side)
    step.losses(records, config)  # the first compares its shortcuts with whole forwards
    return counted(lambda: step.losses(records, config).total.backward())


def _evaluation(axis: str, sizes: Sequence[int]) -> list[Growth]:
    """Return how an evaluation grows, which asks about one record at a time."""
    editor = editor_of(TINY)
    panel = Panel(editor.encoder, RowBudget(1024))
    makers = {"edited": lambda record: editor.edited(editor.read([record.request]))}
    records = records_of(max(sizes), TINY.side)

    def evaluated(count: int) -> None:
        for record in records[:count]:
            evaluate_together([record], editor.encoder, makers, panel=panel)

    evaluated(1)  # the first compares its shortcuts with whole forwards
    work, memory = zip(*(counted(lambda n=size: evaluated(n)) for size in sizes), strict=True)
    constant = [peak * size for peak, size in zip(memory, sizes, strict=True)]
    return [
        Growth(axis, "operations", sizes, work),
        Growth(axis, "bytes, times records (flat is as the records)", sizes, constant),
    ]


def table(found: Sequence[Growth]) -> list[str]:
    """Return the lines of a table."""
    lines = ["| grows | what | sizes | values | beside linear |", "|---|---|---|---|---|"]
    for each in found:
        sizes = ", ".join(map(str, each.sizes))
        values = ", ".join(f"{value:,.0f}" for value in each.values)
        lines.append(f"| {each.axis} | {each.what} | {sizes} | {values} | {each.factor:.2f} |")
    return lines


def main() -> int:
    """Print the table; 1 if something grows faster than its size."""
    found = growths()
    sys.stdout.write("\n".join([*table(found), ""]))
    return int(not all(each.is_linear for each in found))


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    sys.exit(main())
