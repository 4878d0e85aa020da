"""The measurements, each meant for a process of its own, so that its peak memory is its own."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import DynamicCache

from benchmarks.clock import Clock, Time, gflop_of, medians_of, typical
from benchmarks.memory import peak_mib
from benchmarks.shares import parts_of_an_edit, shares_of
from benchmarks.subject import (
    Shapes,
    bytes_of_weights,
    editor_of,
    kept_cache,
    model_classes,
    records_of,
)
from benchmarks.tasks import STATE_BUDGETS, TRAINING
from benchmarks.work import kept_for_backward, operations_of
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.step import TrainingStep

_Run = TypeVar("_Run")

_STEPS_AT_ONCE = 5
"""Decode steps after each prompt: one takes too little time to be measured by itself."""


@dataclass(frozen=True)
class Measures:
    """Measures models of some shapes on a device."""

    shapes: Shapes
    clock: Clock
    repeats: int
    """Timed edits and forwards."""
    steps: int
    """Timed training steps."""
    batch: int
    """Records of a training step."""

    def edits(self) -> dict[str, Any]:
        """Return what an edit takes, and what forwards take with one and without."""
        editor, peaks = self._built()
        records = records_of(self.batch, self.shapes.side)
        rate = self.clock.rate(self.shapes.dtype)
        request = records[0].request
        edit = partial(editor.edit, request.image, request.prompt, request.target or "")
        gflop = gflop_of(edit)
        for _ in range(self._unmeasured - 1):
            edit()
        times = [self.clock.time(edit) for _ in range(self.repeats)]
        forwards = self._forwards(editor, records, rate)
        peaks["all"] = peak_mib(self.clock.device)
        peaks["of it weights"] = round(bytes_of_weights(editor) / 2**20, 1)
        runs = min(self.repeats, 10)
        return {
            "gflop_per_second": rate,
            "times": {"edit": self.clock.figures(times, gflop, rate, 1)},
            "forwards": forwards,
            "parts": parts_of_an_edit(editor, edit, self.clock, runs),
            "shares": {"edit": shares_of(edit, self.clock, runs)},
            "peak_mib": peaks,
        }

    def training(self, seen: str, config: TrainingConfig = TRAINING) -> dict[str, Any]:
        """Return what training steps take.

        Args:
            seen: what steps have seen before; key of `STATE_BUDGETS`.
            config: how to train.
        """
        editor, peaks = self._built()
        rate = self.clock.rate(self.shapes.dtype)
        batches = min(self.steps, 8)
        records = records_of((batches + 1) * self.batch, self.shapes.side)
        steps = TrainingStep(editor, state_budget=STATE_BUDGETS[seen])
        optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=1e-4)

        def step(index: int) -> None:
            start = index * self.batch
            losses = steps.losses(records[start : start + self.batch], config)
            optimiser.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        first = [self.clock.time(partial(step, index)) for index in range(batches)]
        again = [self.clock.time(partial(step, index % batches)) for index in range(self.steps)]
        peaks["all"] = peak_mib(self.clock.device)
        peaks["of it weights"] = round(bytes_of_weights(editor) / 2**20, 1)
        held = steps.frozen.pictures.cache.size + steps.frozen.states.size
        peaks["of it caches"] = round(held / 2**20, 1)
        model = editor.backbone.model
        kept = kept_for_backward(lambda: steps.losses(records[: self.batch], config), model)
        peaks["of it kept for a backward pass"] = round(kept / 2**20, 1)
        name = f"training step, {seen} seen before"
        kinds = {name: (again, 0)}
        if seen == "pictures" and batches > 1:
            # The very first step compares itself with whole forwards.
            kinds = {"training step, new pictures": (first[1:], batches)} | kinds
        times = {
            kind: self.clock.figures(found, gflop_of(partial(step, index)), rate, self.batch)
            for kind, (found, index) in kinds.items()
        }
        found: dict[str, Any] = {"times": times, "peak_mib": peaks}
        if seen == "pictures" and self.steps > 1:  # of one step, a profile tells nothing new
            runs = min(self.steps, 5)
            found["shares"] = {name: shares_of(partial(step, 0), self.clock, runs)}
        return found

    def _built(self) -> tuple[DualEditor, dict[str, float]]:
        """Return an editor, and peak memory in MiB as it came to be."""
        peaks = {"imports": peak_mib(self.clock.device)}
        model_classes()
        peaks["imports of the model"] = peak_mib(self.clock.device)
        editor = editor_of(self.shapes, self.clock.device)
        peaks["model and processor"] = peak_mib(self.clock.device)
        return editor, peaks

    @property
    def _unmeasured(self) -> int:
        return 3 if self.repeats >= 10 else 1

    def _forwards(
        self, editor: DualEditor, records: Sequence[Record], rate: float
    ) -> dict[str, dict[str, float]]:
        found = {}
        plain: Any = editor.backbone.model
        for rows in sorted({1, self.batch}):
            batch = editor.encoder.encode([record.request for record in records[:rows]])
            signals = editor.read([records[0].request])
            for name, threshold in (("open", -1.0), ("closed", 1.0)):
                gate = editor.gate.with_config(GateConfig("cosine", threshold))
                if name == "closed":
                    signals = editor.read([Query("Where is the star?", None, "left")])
                edited = editor.edited(signals, gate=gate)
                found[f"forward, batch {rows}, {name}"] = self._pairs(
                    partial(plain, **batch.inputs, use_cache=False),
                    partial(edited, **batch.inputs, use_cache=False, layout=batch.layout),
                    rate,
                )
            found[f"decode step, batch {rows}"] = self._decode(editor, edited, batch, rate)
        return found

    @torch.no_grad()
    def _decode(self, editor: DualEditor, edited: Any, batch: Any, rate: float) -> dict[str, float]:
        plain: Any = editor.backbone.model
        token = batch.inputs["input_ids"][:, -1:]
        given = batch.inputs["attention_mask"]
        mask = torch.cat([given, given.new_ones(len(given), 1)], 1)

        def after_prompt(call: Callable[..., Any]) -> tuple[Callable[[], Any], DynamicCache]:
            kept = kept_cache(call(**batch.inputs, use_cache=True))
            (cache,) = kept.values()
            step = {"input_ids": token, "attention_mask": mask, **kept}
            call(**step, use_cache=True)  # the first step clears away what the prompt needed
            cache.crop(-1)
            return partial(call, **step, use_cache=True), cache

        operations: list[int] = []
        gflop = 0.0

        def measured(times: list[Time], call: Callable[..., Any] = plain) -> None:
            nonlocal gflop
            step, cache = after_prompt(call)
            if not times:
                operations.append(operations_of(step))
                cache.crop(-1)
                gflop = gflop_of(step)
                cache.crop(-1)
            found = []
            for _ in range(_STEPS_AT_ONCE):
                found.append(self.clock.time(step))
                cache.crop(-1)
            times.append(typical(found))

        def measured_edited() -> None:
            # As `generate` calls the model: the prompt is edited, and each step passes.
            own = edited._call(lambda _inputs: batch.layout, batch.inputs)
            measured(after, lambda **inputs: own.run(plain, plain, (), inputs))

        before: list[Time] = []
        after: list[Time] = []
        again: list[Time] = []
        runs = [partial(measured, before), measured_edited, partial(measured, again)]
        for index in range(self.repeats):
            for run in _turned(runs, index):
                run()
        return self._compared(before, after, again, operations, gflop, rate)

    @torch.no_grad()
    def _pairs(
        self, plain: Callable[[], Any], edited: Callable[[], Any], rate: float
    ) -> dict[str, float]:
        gflop = gflop_of(edited)
        operations = [operations_of(plain), operations_of(edited)]
        for _ in range(self._unmeasured):
            plain()
        before: list[Time] = []
        after: list[Time] = []
        again: list[Time] = []
        pairs = [(plain, before), (edited, after), (plain, again)]
        for index in range(self.repeats):
            for call, times in _turned(pairs, index):
                times.append(self.clock.time(call))
        return self._compared(before, after, again, operations, gflop, rate)

    def _compared(
        self,
        before: Sequence[Time],
        after: Sequence[Time],
        again: Sequence[Time],
        operations: Sequence[int],
        gflop: float,
        rate: float,
    ) -> dict[str, float]:
        busy = self.clock.busy

        def overhead(times: Sequence[Time]) -> float:
            # Neighbours in time share the machine's noise.
            ratios = [busy(two) / busy(one) for one, two in zip(before, times, strict=True)]
            return round(100 * (statistics.median(ratios) - 1), 2)

        plain, edited = medians_of(before), medians_of(after)
        milliseconds = statistics.median(busy(time) for time in after)
        return {
            "plain_cpu_ms": plain["cpu_ms"],
            "plain_wall_ms": plain["wall_ms"],
            "edited_cpu_ms": edited["cpu_ms"],
            "edited_wall_ms": edited["wall_ms"],
            "plain_operations": operations[0],
            "added_operations": operations[1] - operations[0],
            "median_overhead_percent": overhead(after),
            "plain_again_percent": overhead(again),
            "limit_percent": round(1e5 * gflop / rate / milliseconds, 1),
        }


def _turned(runs: Sequence[_Run], index: int) -> Sequence[_Run]:
    """Return runs in another order each time: each comes first, and after each, as often."""
    start = index % len(runs)
    order = [*runs[start:], *runs[:start]]
    return order[::-1] if index // len(runs) % 2 else order
