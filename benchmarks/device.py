"""Tries everything on a GPU, says what passed, and measures it.

python -m benchmarks.device --device cuda [--write docs/performance.md]

prints a line for each trial and a table at the end; its exit code is 1 if one failed. `--tiny` runs
the same with a tiny model, on a processor if need be.
"""

import argparse
import gc
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.clock import Clock
from benchmarks.device_contract import contract
from benchmarks.device_figures import Figures
from benchmarks.device_measuring import measuring
from benchmarks.device_modes import modes
from benchmarks.device_subject import TINY, DeviceSubject
from benchmarks.device_training import training
from benchmarks.page import folder_of, write_page
from benchmarks.speed import require_memory
from benchmarks.subject import SHAPES, Shapes
from benchmarks.trials import Trial, Trials, table
from easyedit_dualedit.files import write_json

_FULL = "llava-1.5-7b"
_REPEATS, _STEPS = 20, 8


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return what the command was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu with --tiny")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the trials")
    parser.add_argument(
        "--limit", type=float, default=450, help="seconds after which no further trial begins"
    )
    parser.add_argument("--only", default="", help="only trials whose name has this in it")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="store the figures, and make the page of all"
    )
    found = parser.parse_args(given)
    if torch.device(found.device).type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {found.device}: there is no GPU that torch can use")
    return found


def main(given: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    asked = arguments(given)
    device = torch.device(asked.device)
    shapes = TINY if asked.tiny else replace(SHAPES[_FULL], repeats=_REPEATS, steps=_STEPS)
    require_memory(shapes, shapes.batch, shapes.steps, device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # tiny tensors gain nothing from a second thread
    trials = Trials(device, asked.limit, asked.only)
    command = f"python -m benchmarks.device --device {asked.device}{' --tiny' * asked.tiny}"
    command += f" --write {asked.write}" if asked.write else ""
    figures = Figures("tiny" if asked.tiny else _FULL, shapes, Clock(device), command)
    _try_all(trials, shapes, device, figures)
    found = {**figures.found, "trials": trials.to_dicts()}
    sys.stdout.write("\n" + table(found["trials"]) + "\n" + json.dumps(found, indent=2) + "\n")
    if asked.write and "times" in figures.found:
        kind = "tiny" if asked.tiny else f"{_FULL}-{device.type}"
        write_json(folder_of(asked.write) / f"{kind}.json", found)
        write_page(asked.write)
    return int(trials.failed)


def _try_all(trials: Trials, shapes: Shapes, device: torch.device, figures: Figures) -> None:
    """Run everything, what takes longest last; no two whole models are there at once."""
    trials.run_all(_of_one_model(DeviceSubject(shapes, device), figures))
    gc.collect()
    trials.run("figures: edits and forwards", figures.edits)
    trials.run("figures: training steps", figures.training)
    trials.run_all(modes(DeviceSubject(shapes, device).shallow()))


def _of_one_model(subject: DeviceSubject, figures: Figures) -> dict[str, Trial]:
    routing = {"figures: routing": partial(figures.routing, subject)}
    return contract(subject) | training(subject) | measuring(subject) | routing


if __name__ == "__main__":
    raise SystemExit(main())
