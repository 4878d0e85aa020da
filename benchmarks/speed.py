"""Measures edits, training and edited forwards; prints JSON and tables, or writes a page.

python -m benchmarks.speed [--repeats N] [--write docs/performance.md]
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from benchmarks.subject import PUBLISHED, editor_of, records_of
from benchmarks.work import counted, kept_for_backward
from easyedit_dualedit.batch import Query
from easyedit_dualedit.config import CACHE_BYTES, GateConfig, TrainingConfig
from easyedit_dualedit.editor import DualEditor
from easyedit_dualedit.records import Record
from easyedit_dualedit.runs import write_text
from easyedit_dualedit.steps import SharedSteps

BATCH = 4
TRAINING = TrainingConfig(text_locality_weight=0.0, end_of_answer=False)
"""The loss terms of the published code."""


def works(editor: DualEditor) -> dict[str, Callable[[], object]]:
    """Return an edit, and training steps that have seen their pictures or queries before."""
    records = records_of(BATCH)
    found: dict[str, Callable[[], object]] = {"edit": lambda: editor.read([records[0].request])}
    for name, budget in (("pictures", 0), ("queries", CACHE_BYTES)):
        steps = SharedSteps(editor, state_budget=budget)
        for _ in range(2):  # the first compares itself with whole forwards
            steps.losses(records, TRAINING)
        found[f"training step, {name} seen before"] = partial(_forth_and_back, steps, records)
    return found


def _forth_and_back(steps: SharedSteps, records: Sequence[Record]) -> None:
    steps.losses(records, TRAINING).total.backward()  # type: ignore[no-untyped-call]


def count_work() -> dict[str, dict[str, int]]:
    """Return how often each of `works` runs the parts of the model."""
    editor = editor_of()
    found = {}
    for name, work in works(editor).items():
        with counted(editor.backbone) as count:
            work()
        found[name] = asdict(count)
    return found


def arithmetic() -> dict[str, Any]:
    """Return the arithmetic of each of `works`, and how long it takes at the least.

    Floating point operations of matrix products, attention and convolutions, backward included; and
    the time that they take at the rate of one large product, measured here.
    """
    side = 1024
    factor = torch.randn(side, side)
    product = _median([_times(lambda: factor @ factor) for _ in range(9)])["cpu_ms"]
    rate = 2 * side**3 / product / 1e6  # operations a nanosecond
    found = {}
    for name, work in works(editor_of()).items():
        with FlopCounterMode(display=False) as counter:
            work()
        giga = counter.get_total_flops() / 1e9
        found[name] = {"gflop": round(giga, 2), "least_ms": round(1e3 * giga / rate, 1)}
    return {"gflop_per_second": round(rate, 1), "work": found}


def train_once(repeats: int, state_budget: int) -> dict[str, Any]:
    """Return the times of training steps, and the peak memory of this process."""
    imported = _peak()
    editor = editor_of()
    built = _peak()
    records = records_of(8 * BATCH)
    steps = SharedSteps(editor, state_budget=state_budget)
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=1e-4)

    def step(index: int) -> None:
        start = index * BATCH % len(records)
        losses = steps.losses(records[start : start + BATCH], TRAINING)
        optimiser.zero_grad(set_to_none=True)
        losses.total.backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    first = [_times(lambda i=i: step(i)) for i in range(8)]  # type: ignore[misc]
    found = [_times(lambda i=i: step(i)) for i in range(repeats)]  # type: ignore[misc]
    peak = _peak()
    held = steps.prefix.features.size + steps.prefix.states.size
    model = editor.backbone.model
    graph = kept_for_backward(lambda: steps.losses(records[:BATCH], TRAINING), model)
    return {
        "first epoch": _median(first),
        "steady": _median(found),
        "peak_mib": peak,
        "peak_after_imports_mib": imported,
        "peak_after_building_mib": built,
        "cached_mib": round(held / 2**20, 1),
        "kept_for_backward_mib": round(graph / 2**20, 1),
    }


def _peak() -> float:
    # A process counts its parent's memory in ru_maxrss, but not in VmHWM.
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def measure(repeats: int) -> dict[str, Any]:
    """Return all figures."""
    editor = editor_of()
    records = records_of(BATCH)
    for _ in range(3):
        editor.edit(*_request(records[0]))
    edits = [_times(lambda: editor.edit(*_request(records[0]))) for _ in range(repeats)]
    return {
        "machine": _machine(),
        "counts": count_work(),
        "arithmetic": arithmetic(),
        "edit": _median(edits),
        "training step": {
            "pictures": _training(repeats, 0),
            "queries": _training(repeats, CACHE_BYTES),
        },
        # glibc then gives back what is free at once, so that the heap has few holes.
        "trimmed": _training(8, CACHE_BYTES, MALLOC_TRIM_THRESHOLD_="131072"),
        "overhead_percent": _overheads(editor, records, repeats),
    }


def _training(repeats: int, state_budget: int, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed", "--repeats", str(repeats)]
    command += ["--training-only", str(state_budget)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | environment
    ).stdout
    result: dict[str, Any] = json.loads(found)
    return result


def _overheads(editor: DualEditor, records: Sequence[Record], repeats: int) -> dict[str, Any]:
    found = {}
    plain: Any = editor.backbone.model
    for rows in (1, BATCH):
        batch = editor.encoder.encode([record.request for record in records[:rows]])
        signals = editor.read([records[0].request])
        for name, threshold in (("open", -1.0), ("closed", 1.0)):
            gate = editor.gate.with_config(GateConfig("cosine", threshold))
            if name == "closed":
                other = Query("Where is the star?", None, "left")
                signals = editor.read([other])
            edited = editor.edited(signals, gate=gate)
            found[f"forward, batch {rows}, {name}"] = _pairs(
                partial(plain, **batch.inputs, use_cache=False),
                partial(edited, **batch.inputs, use_cache=False, layout=batch.layout),
                repeats,
            )
        found[f"decode step, batch {rows}"] = _decode(editor, edited, batch, repeats)
    return found


def _decode(editor: DualEditor, edited: Any, batch: Any, repeats: int) -> dict[str, float]:
    plain: Any = editor.backbone.model
    token = batch.inputs["input_ids"][:, -1:]
    mask = torch.cat(
        [batch.inputs["attention_mask"], torch.ones(batch.size, 1, dtype=torch.long)], 1
    )

    def after_prompt() -> tuple[float, float]:
        cache = DynamicCache(config=plain.config.get_text_config())
        plain(**batch.inputs, past_key_values=cache, use_cache=True)
        step = {"input_ids": token, "attention_mask": mask, "past_key_values": cache}
        plain(**step, use_cache=True)  # the first step clears away what the prompt needed
        cache.crop(-1)
        return _times(partial(plain, **step, use_cache=True))

    plain_times, edited_times = [], []
    with torch.no_grad():
        for _ in range(repeats):
            plain_times.append(after_prompt())
            # What `generate` runs inside: the prompt is edited, and each step passes.
            with edited._generating(lambda _inputs: batch.layout, batch.inputs):
                edited_times.append(after_prompt())
    return _compared(plain_times, edited_times)


def _pairs(plain: Callable[[], Any], edited: Callable[[], Any], repeats: int) -> dict[str, float]:
    before, after = [], []
    with torch.no_grad():
        for index in range(repeats + 3):
            pair = (_times(plain), _times(edited)) if index % 2 else (_times(edited), _times(plain))
            one, two = pair if index % 2 else pair[::-1]
            if index >= 3:
                before.append(one)
                after.append(two)
    return _compared(before, after)


def _compared(
    before: Sequence[tuple[float, float]], after: Sequence[tuple[float, float]]
) -> dict[str, float]:
    # Neighbours in time share the machine's noise.
    ratios = [two[0] / one[0] for one, two in zip(before, after, strict=True)]
    return {
        "plain_cpu_ms": _median(before)["cpu_ms"],
        "edited_cpu_ms": _median(after)["cpu_ms"],
        "median_overhead_percent": round(100 * (statistics.median(ratios) - 1), 2),
    }


def _request(record: Record) -> tuple[Any, str, str]:
    return record.request.image, record.request.prompt, record.request.target or ""


def _times(call: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)


def _median(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    cpu, wall = zip(*times, strict=True)
    return {
        "cpu_ms": round(statistics.median(cpu), 2),
        "wall_ms": round(statistics.median(wall), 2),
        "least_cpu_ms": round(min(cpu), 2),
    }


def _machine() -> dict[str, str]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def as_markdown(found: dict[str, Any], command: str) -> str:
    """Return the page of figures."""
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    lines = [
        "# Speed and memory",
        "",
        f"Written by `{command}`; nothing here is typed by hand. One pinned core of: {machine}.",
        "",
        f"The model has random weights: hidden size {PUBLISHED.hidden}, {PUBLISHED.layers} decoder"
        f" layers, {PUBLISHED.image_tokens} image tokens, float32; text layer"
        f" {PUBLISHED.text_layer}, vision layer {PUBLISHED.vision_layer}, adapter width"
        f" {PUBLISHED.width}, 8 heads, batch {BATCH}. Losses: request, text rephrase, image"
        " rephrase, image locality. Times are medians; plain and edited runs alternate, and the"
        " overhead is the median of the ratios of neighbours.",
        "",
        "| work | decoder layers | rows of frozen layers | lm_head passes | lm_head positions |"
        " vision passes |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | " + " | ".join(str(value) for value in work.values()) + " |"
        for name, work in found["counts"].items()
    ]
    floor = found["arithmetic"]
    lines += [
        "",
        "What no code can go below: the floating point operations of the matrix products, at the"
        f" {floor['gflop_per_second']} GFLOP/s that one large product reaches here.",
        "",
        "| work | GFLOP | least CPU ms |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {work['gflop']} | {work['least_ms']} |" for name, work in floor["work"].items()
    ]
    training = found["training step"]
    lines += ["", "| time | CPU ms | wall ms | least CPU ms |", "|---|---|---|---|"]
    timed = {
        "edit": found["edit"],
        "training step, new pictures": training["queries"]["first epoch"],
        "training step, pictures seen before": training["pictures"]["steady"],
        "training step, queries seen before": training["queries"]["steady"],
    }
    lines += [
        f"| {name} | {time['cpu_ms']} | {time['wall_ms']} | {time['least_cpu_ms']} |"
        for name, time in timed.items()
    ]
    lines += [
        "",
        f"Peak memory of the training process: {training['queries']['peak_mib']} MiB, of which"
        f" {training['queries']['peak_after_imports_mib']} after its imports and"
        f" {training['queries']['peak_after_building_mib']} after building model and processor."
        f" Caches hold {training['queries']['cached_mib']} MiB, autograd keeps"
        f" {training['queries']['kept_for_backward_mib']} MiB from a step's forward to its"
        " backward pass; the rest is what a step needs for a moment, code of libraries that it is"
        " the first to run, and holes in the heap. With glibc told to give back free memory at"
        f" once (MALLOC_TRIM_THRESHOLD_=131072) the peak is {found['trimmed']['peak_mib']} MiB, and"
        f" a step with queries seen before takes {found['trimmed']['steady']['cpu_ms']} ms of CPU.",
        "",
    ]
    lines += ["| forward | plain CPU ms | edited CPU ms | overhead % |", "|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(str(value) for value in values.values()) + " |"
        for name, values in found["overhead_percent"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--write", type=Path, help="write the tables to this file")
    parser.add_argument("--training-only", type=int, metavar="BYTES", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if given.training_only is not None:
        sys.stdout.write(json.dumps(train_once(given.repeats, given.training_only)))
        return
    found = measure(given.repeats)
    command = f"python -m benchmarks.speed --repeats {given.repeats}"
    if given.write:
        command += f" --write {given.write}"
    page = as_markdown(found, command)
    sys.stdout.write(json.dumps(found, indent=2) + "\n\n" + page)
    if given.write:
        write_text(given.write, page)


if __name__ == "__main__":
    main()
