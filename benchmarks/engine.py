"""What Accelerate's own precision and accumulation would cost a training beside ours.

``python -m benchmarks.engine`` prints a table: what each needs to be there, and how long a step
takes that computes in bfloat16 and accumulates two batches, on a small model. The gradients of the
two ways are compared. Each way runs in a process of its own.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from easyedit_dualedit.train.frozen_part import precision

STEPS = 60
WAYS = ("ours", "accelerate")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))


def _mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def _ours(model: nn.Module) -> Callable[[list[Tensor]], None]:
    def step(batches: list[Tensor]) -> None:
        for batch in batches:
            with precision("cpu", "bfloat16"):
                loss = model(batch).float().square().mean()
            (loss / len(batches)).backward()

    return step


def _accelerates(model: nn.Module) -> Callable[[list[Tensor]], None]:
    from accelerate import Accelerator

    engine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)

    def step(batches: list[Tensor]) -> None:
        for batch in batches:
            within: AbstractContextManager[Any] = engine.accumulate(model)
            with within, engine.autocast():
                loss = model(batch).float().square().mean()
            engine.backward(loss)

    return step


def measure(way: str) -> str:
    """Return the cells of one way: seconds and MiB to be ready, milliseconds a step, gradients."""
    torch.set_num_threads(1)
    model, start, before = _model(), time.perf_counter(), _mib()
    step = {"ours": _ours, "accelerate": _accelerates}[way](model)
    ready, taken = time.perf_counter() - start, _mib() - before
    batches = list(torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)))
    spent = []
    for _ in range(STEPS):
        model.zero_grad(set_to_none=True)
        began = time.process_time()
        step(batches)
        spent.append(1000 * (time.process_time() - began))
    gradients = sum(float(p.grad.abs().sum()) for p in model.parameters() if p.grad is not None)
    return f"{ready:.2f} | {taken:.0f} | {median(spent):.3f} | {gradients:.6f}"


def main() -> None:
    """Print the table, or measure the way that is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", nargs="?", choices=WAYS, help="only this one, in this process")
    way = parser.parse_args().way
    if way is not None:
        sys.stdout.write(measure(way))
        return
    names = ("", "s to be ready", "MiB for it", "CPU ms a step", "sum of gradients")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.engine", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        lines.append(f"| {way} | {done.stdout} |")
    sys.stdout.write("\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
