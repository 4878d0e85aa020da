"""The figures of a device: those of `benchmarks.speed`, and what routing among many edits takes."""

import gc
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from benchmarks.clock import Clock
from benchmarks.device_subject import DeviceSubject
from benchmarks.measures import Measures
from benchmarks.speed import COMPILED, described, renamed
from benchmarks.subject import Shapes
from benchmarks.tasks import STATE_BUDGETS, TRAINING
from easyedit_dualedit.experiments.gate_rates import edits_with
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.inputs import TokenLayout

COUNTS = (1, 100, 10_000)
"""Numbers of edits to route among."""


class Figures:
    """The figures of one model on one device, part by part."""

    def __init__(self, name: str, shapes: Shapes, clock: Clock, command: str):
        """Measure nothing yet.

        Args:
            name: of the shapes.
            shapes: of the model.
            clock: of the device.
            command: what was asked for.
        """
        self._measures = Measures(shapes, clock, shapes.repeats, shapes.steps, shapes.batch)
        self._describe = partial(described, name, shapes, str(clock.device), shapes.batch, command)
        self.found: dict[str, Any] = {}
        """What was measured, as `benchmarks.speed` stores it; empty before `edits`."""

    def edits(self) -> str:
        """Measure an edit, and forwards with one and without."""
        self._start()
        one = self._measures.edits()
        self.found |= self._describe()
        self._take("edits and forwards", one)
        forward = self.found["forwards"]["forward, batch 1, open"]
        return (
            f"an edit {self.found['times']['edit']['wall_ms']} ms; an edited forward"
            f" {forward['median_overhead_percent']} % over {forward['plain_wall_ms']} ms"
        )

    def training(self) -> str:
        """Measure training steps."""
        for seen in STATE_BUDGETS:
            self._start()
            self._take(f"training, {seen} seen before", self._measures.training(seen))
        if self._measures.clock.is_gpu:
            self._start()
            one = self._measures.training(seen, replace(TRAINING, compile_layers=True))
            one["times"] = renamed(one["times"], COMPILED)
            self._take(f"the same, {COMPILED}", one)
        times = self.found["times"].items()
        return ", ".join(f"{n} {t['wall_ms']} ms" for n, t in times if n.startswith("training"))

    def routing(self, subject: DeviceSubject) -> str:
        """Measure decisions among many edits, as shares of a forward of one row."""
        self.found["routing"] = found = routing(subject, self._measures.clock, 20)
        most = found[f"closed, among {max(COUNTS)} edits"]
        return f"among {max(COUNTS)}: {most['wall_ms']} ms, {most['percent']} % of a forward"

    def _start(self) -> None:
        gc.collect()  # the model before is part of cycles
        if self._measures.clock.is_gpu:  # each part tells its own peak
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._measures.clock.device)

    def _take(self, title: str, one: dict[str, Any]) -> None:
        self.found["peak_mib"][title] = one.pop("peak_mib")
        for kind in ("times", "shares"):
            self.found[kind] |= one.pop(kind, {})
        self.found |= one


@torch.no_grad()
def routing(subject: DeviceSubject, clock: Clock, repeats: int) -> dict[str, dict[str, float]]:
    """Return what a cosine gate takes to decide among edits of random keys, on one row.

    Open is a query that the last of the edits concerns, closed one that none does. Forwards and
    decisions take turns.

    Returns:
        title -> `wall_ms`, and `percent` of an unedited forward on a prompt with a picture.
    """
    editor = subject.editor
    batch = subject.encode([subject.records[0].request], with_target=False)
    layer = editor.config.text_layer
    with record(editor.backbone.layers, [layer], stop=True) as seen:
        subject.model(**batch.inputs, use_cache=False)
    hidden = seen[layer]
    own = editor.gate.key(hidden[0, batch.layout.gate[0]])
    gate = editor.gate.with_config(GateConfig("cosine", 0.9))
    decisions: dict[str, Callable[[], Any]] = {}
    generator = torch.Generator().manual_seed(0)
    for count in COUNTS:
        keys = functional.normalize(torch.randn(count, len(own), generator=generator), dim=-1)
        keys = keys.to(own)
        for name in ("closed", "open"):
            if name == "open":
                keys = torch.cat([keys[:-1], own[None]])
            edits = edits_with(keys)
            active = ActiveEdits.of_stored(edits, editor.adapters, gate)
            title = f"{name}, among {count} edit{'s' * (count > 1)}"
            decisions[title] = partial(_open_rows, active, hidden, batch.layout)
    plain = partial(subject.model, **batch.inputs, use_cache=False)
    forwards, taken = [], {title: [] for title in decisions}  # type: ignore[var-annotated]
    for turn in range(repeats + 1):
        forwards.append(clock.busy(clock.time(plain)))
        for title, decide in decisions.items():
            taken[title].append(clock.busy(clock.time(decide)))
        if turn == 0:  # what is made once is made now
            forwards.clear()
            for each in taken.values():
                each.clear()
    forward = statistics.median(forwards)
    return {
        title: {
            "wall_ms": round(statistics.median(times), 3),
            "percent": round(100 * statistics.median(times) / forward, 2),
        }
        for title, times in taken.items()
    }


def _open_rows(active: ActiveEdits, hidden: torch.Tensor, layout: TokenLayout) -> dict[int, int]:
    return active.decide(hidden, layout).open_rows()
