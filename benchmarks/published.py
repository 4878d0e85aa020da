"""A training step beside one of the published code, turn by turn on one core.

    git clone https://github.com/zhiyiscs/DualEdit
    pip install --no-deps --target transformers-4.41 \\
        transformers==4.41.2 tokenizers==0.19.1 huggingface_hub==0.36.2
    python -m benchmarks.published --clone DualEdit --older transformers-4.41 --dtype bfloat16

makes both a model of the published measurements' shape and the same records. Ours reads each record
for the first time, vision tower and frozen layers included, and keeps nothing; the published step
finds on disk what its preprocessing left there, which is not counted, and its unused trace is off.
The published code loads every model in float32 and has no setting for it; ours takes a precision.
The published code cannot start as it is: `benchmarks.published_child` says what stands in for what
it lacks.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import easyedit_dualedit.testbed as testbed
from benchmarks.clock import Clock
from benchmarks.memory import peak_mib
from benchmarks.subject import PUBLISHED, editor_of, records_of
from benchmarks.tasks import TRAINING
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

RECIPES = {
    "shipped": replace(TRAINING, image_locality_weight=0.0, end_of_answer=True),
    "published": TRAINING,
}
"""Losses of our steps: those of the shipped hyperparameters, and those of the published code."""

_UNMEASURED = 3
"""Steps at the beginning, in which caches fill."""


@dataclass(frozen=True)
class Steps:
    """What steps took, in milliseconds of the processor, and the most memory of their process."""

    milliseconds: tuple[float, ...]
    peak_mib: float


class OurSteps:
    """Takes our steps, each of records that nothing has seen before."""

    def __init__(self, editor: DualEditor, config: TrainingConfig, records: Sequence[Record]):
        """Keep nothing of any record.

        Args:
            editor: its adapters are trained.
            config: losses and batch size.
            records: of all steps, in order.
        """
        self._editor, self._config, self._records = editor, config, records
        self._step = TrainingStep(editor, budget=0, state_budget=0)
        self._optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=config.learning_rate)
        self._taken = 0

    def take(self) -> None:
        """Take the next step."""
        size = self._config.batch_size
        batch = self._records[self._taken * size : (self._taken + 1) * size]
        self._taken += 1
        self._optimiser.zero_grad(set_to_none=True)
        losses = self._step.losses(batch, self._config)
        losses.total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._editor.adapters.parameters(), 1.0)
        self._optimiser.step()


def measure(
    clone: Path, older: Path, recipe: str, steps: int, dtype: torch.dtype = torch.float32
) -> tuple[Steps, Steps]:
    """Return what the published steps took, and ours, the first few left out.

    Args:
        clone: of the published code.
        older: folder with the transformers that it runs on.
        recipe: one of `RECIPES`.
        steps: of each.
        dtype: of our frozen model; theirs is float32, and so are the adapters of both.
    """
    torch.set_num_threads(1)
    config = replace(RECIPES[recipe], batch_size=PUBLISHED.batch)
    editor = editor_of(replace(PUBLISHED, dtype=dtype))
    records = records_of(steps * config.batch_size)
    ours = OurSteps(editor, config, records)
    clock = Clock(torch.device("cpu"))
    mine: list[float] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        told.write_text(json.dumps(_told(editor, records, clone)), encoding="utf-8")
        child = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("published_child.py"), told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(older)},
        )
        with child:
            if child.stdin is None or child.stdout is None or child.stdout.readline() != "ready\n":
                raise SystemExit(f"the published code does not start from {clone} with {older}")
            for place in range(steps):
                for turn in (place % 2, 1 - place % 2):
                    if turn:
                        mine.append(clock.time(ours.take)[0])
                        continue
                    child.stdin.write("step\n")
                    child.stdin.flush()
                    theirs.append(json.loads(child.stdout.readline()))
            child.stdin.close()
    taken = tuple(each["milliseconds"] for each in theirs[_UNMEASURED:])
    return (
        Steps(taken, theirs[-1]["peak_mib"]),
        Steps(tuple(mine[_UNMEASURED:]), peak_mib(clock.device)),
    )


def table(theirs: Steps, ours: Steps, recipe: str, dtype: str = "float32") -> str:
    """Return both as Markdown; a ratio is the median of those of neighbours."""
    ratios = [a / b for a, b in zip(theirs.milliseconds, ours.milliseconds, strict=True)]
    lines = [
        "| step | CPU ms | published over it | peak MiB |",
        "|---|---|---|---|",
    ]
    for name, steps, ratio in (
        ("published, float32, preprocessing not counted", theirs, 1.0),
        (f"ours, {dtype}, new pictures, losses as {recipe}", ours, statistics.median(ratios)),
    ):
        taken = statistics.median(steps.milliseconds)
        lines.append(f"| {name} | {taken:.0f} | {ratio:.2f} | {steps.peak_mib:.0f} |")
    return "\n".join(lines)


def _told(editor: DualEditor, records: Sequence[Record], clone: Path) -> dict[str, Any]:
    """Return what the published code is to do, as plain values."""

    def asked(query: Query) -> dict[str, Any]:
        colour = query.pictures[0].getpixel((0, 0)) if query.pictures else None  # type: ignore[union-attr]
        prompt = editor.encoder.prompt_text(query)
        return {"colour": colour, "prompt": prompt, "target": query.target}

    return {
        "clone": str(clone.resolve()),
        "tokenizer": str(Path(testbed.__file__).parent / "llava-onevision-testbed"),
        "batch": PUBLISHED.batch,
        "shapes": {
            name: getattr(PUBLISHED, name)
            for name in ("hidden", "inner", "layers", "heads", "side", "width")
        }
        | {"tower_hidden": PUBLISHED.tower_hidden, "tower_inner": PUBLISHED.tower_inner}
        | {"tower_layers": PUBLISHED.tower_layers, "tower_heads": PUBLISHED.tower_heads}
        | {"text_layer": PUBLISHED.text_layer, "vision_layer": PUBLISHED.vision_layer},
        "records": [[asked(query) for query in record.queries] for record in records],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clone", type=Path, required=True, help="folder of the published code")
    parser.add_argument("--older", type=Path, required=True, help="folder of its transformers")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="shipped")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of our frozen model"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--core", type=int, default=0, help="that both are pinned to")
    given = parser.parse_args(arguments)
    os.sched_setaffinity(0, {given.core})
    dtype = getattr(torch, given.dtype)
    found = measure(given.clone, given.older, given.recipe, given.steps, dtype)
    sys.stdout.write(table(*found, given.recipe, given.dtype) + "\n")


if __name__ == "__main__":
    main()
