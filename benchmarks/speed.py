"""Measures edits, training and edited forwards; prints JSON and tables, or writes a page.

python -m benchmarks.speed [--shapes llava-1.5-7b] [--device cuda] [--write docs/performance.md]
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

import easyedit_dualedit
from benchmarks.clock import Clock
from benchmarks.depth import step_gflop
from benchmarks.measures import Measures
from benchmarks.memory import free_bytes
from benchmarks.page import folder_of, section_of, write_page
from benchmarks.parts import Parts
from benchmarks.subject import NARROW, PUBLISHED, SHAPES, Shapes
from benchmarks.tasks import STATE_BUDGETS, TRAINING, count_work
from easyedit_dualedit.files import digest_of, write_json

_EDITS = "edits and forwards"
_TRIMMING = {"MALLOC_TRIM_THRESHOLD_": "131072"}
"""Has glibc give free memory back at once, so that the heap has few holes."""
COMPILED = "compile_layers: true"
"""What a row of compiled training steps is called by."""

_TRIMMED = "MALLOC_TRIM_THRESHOLD_=131072"


def measure(given: argparse.Namespace) -> tuple[dict[str, Any], Parts]:
    """Return all figures, and their parts, each measured by a process of its own.

    Parts that an interrupted run of the same command has kept are not measured again.
    """
    shapes = SHAPES[given.shapes]
    found = described(given.shapes, shapes, given.device, given.batch, _command(given))
    code = digest_of(Path(easyedit_dualedit.__file__).parent)
    settings = {"code": code, **{name: found[name] for name in ("command", "machine", "model")}}
    parts = Parts(_kept_in(given), settings)
    names = (_EDITS, *(STATE_BUDGETS if given.steps else ()))
    for name in names:
        one = parts.get(name, partial(_measured_apart, name, given))
        title = name if name == _EDITS else f"training, {name} seen before"
        found["peak_mib"][title] = one.pop("peak_mib")
        for kind in ("times", "shares"):
            found[kind] |= one.pop(kind, {})
        found |= one
    if not given.steps:
        rate = found["gflop_per_second"]
        found["computed"] = parts.get("computed", partial(_computed, shapes, given, rate))
    elif given.device == "cpu" and shapes is PUBLISHED:
        one = parts.get("trimmed", partial(_measured_apart, names[-1], given, **_TRIMMING))
        found["peak_mib"][f"the same, {_TRIMMED}"] = one["peak_mib"]
        found["times"] |= renamed(one["times"], _TRIMMED)
        if shutil.which("g++"):
            one = parts.get("compiled", partial(_measured_apart, names[-1], given, "--compiled"))
            found["times"] |= renamed(one["times"], COMPILED)
    return found, parts


def described(name: str, shapes: Shapes, device: str, batch: int, command: str) -> dict[str, Any]:
    """Return what a run says of itself, and the work that it counts; no time is measured yet."""
    return {
        "shapes": name,
        "device": device,
        "command": command,
        "machine": _machine(torch.device(device)),
        "model": _model(shapes, batch),
        "counted batch": PUBLISHED.batch,
        "counted hidden size": NARROW,
        "counts": count_work(shapes.narrow()),
        "times": {},
        "shares": {},
        "peak_mib": {},
    }


def _kept_in(given: argparse.Namespace) -> Path | None:
    return given.write and folder_of(given.write) / f".parts-{_name(given)}"


def _name(given: argparse.Namespace) -> str:
    kind = torch.device(given.device).type
    return given.shapes if kind == "cpu" else f"{given.shapes}-{kind}"


def renamed(times: dict[str, Any], condition: str) -> dict[str, Any]:
    """Return times whose names tell what was otherwise."""
    return {f"{name}, {condition}": time for name, time in times.items()}


def _computed(shapes: Shapes, given: argparse.Namespace, rate: float) -> dict[str, Any]:
    return {
        name: {"gflop": gflop, "least_ms": round(1e3 * gflop / rate, 1)}
        for name, gflop in step_gflop(shapes, given.batch, torch.device(given.device)).items()
    }


def _measured_apart(
    part: str, given: argparse.Namespace, *flags: str, **environment: str
) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speed", "--part", part, *flags]
    for name in ("shapes", "device", "repeats", "steps", "batch"):
        command += [f"--{name}", str(getattr(given, name))]
    output = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | environment
    ).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def _command(given: argparse.Namespace) -> str:
    command = "".join(f"{name}={os.environ[name]} " for name in _TRIMMING if name in os.environ)
    command += f"python -m benchmarks.speed --shapes {given.shapes} --device {given.device}"
    command += f" --repeats {given.repeats} --steps {given.steps} --batch {given.batch}"
    return command + (f" --write {given.write}" if given.write else "")


def _model(shapes: Shapes, batch: int) -> dict[str, Any]:
    return {
        "hidden size": shapes.hidden,
        "inner size": shapes.inner,
        "decoder layers": shapes.layers,
        "vision layers": shapes.tower_layers,
        "image tokens": shapes.image_tokens,
        "dtype": str(shapes.dtype).removeprefix("torch."),
        "text layer": shapes.text_layer,
        "vision layer": shapes.vision_layer,
        "adapter width": shapes.width,
        "batch": batch,
    }


def _machine(device: torch.device) -> dict[str, str]:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    found = {"cpu": model}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return what the command was asked for; what was left out follows from the shapes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument(
        *("--shapes", "--hparams"),
        choices=list(SHAPES),
        default="published",
        help="of which model; its weights are drawn at random, so that none is fetched",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--repeats", type=int, help="timed edits and forwards")
    parser.add_argument("--steps", type=int, help="timed training steps; 0 computes their work")
    parser.add_argument("--batch", type=int, help="records of a training step")
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="store the figures, and make the page of all"
    )
    parser.add_argument("--part", choices=(_EDITS, *STATE_BUDGETS), help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    found = parser.parse_args(given)
    for name in ("repeats", "steps", "batch"):
        value = getattr(found, name)
        if value is None:
            setattr(found, name, getattr(SHAPES[found.shapes], name))
        elif value < (0 if name == "steps" else 1):
            parser.error(f"--{name} {value}: a whole number, 1 or above (--steps also 0)")
    return found


def require_memory(shapes: Shapes, batch: int, steps: int, device: torch.device) -> None:
    """End the command where the model has no room.

    Raises:
        SystemExit: with code 2, the reason written.
    """
    needed, free = shapes.needed_bytes(batch, trains=steps > 0), free_bytes(device)
    if needed > free:
        work = f"a training step of {batch}" if steps else "its forwards"
        sys.stderr.write(
            f"a model of these shapes and {work} need about {needed / 2**30:.1f} GiB on {device},"
            f" and {free / 2**30:.1f} GiB are free"
            f"{'; --steps 0 trains nothing' if steps else ''}\n"
        )
        raise SystemExit(2)


def main() -> None:
    """Run the command."""
    given = arguments()
    device, shapes = torch.device(given.device), SHAPES[given.shapes]
    if device.type == "cpu":
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if given.part is not None:
        measures = Measures(shapes, Clock(device), given.repeats, given.steps, given.batch)
        if given.part == _EDITS:
            found = measures.edits()
        else:
            config = replace(TRAINING, compile_layers=given.compiled)
            found = measures.training(given.part, config)
        sys.stdout.write(json.dumps(found) + "\n")
        return
    require_memory(shapes, given.batch, given.steps, device)
    found, parts = measure(given)
    sys.stdout.write(json.dumps(found, indent=2) + "\n\n" + section_of(found))
    if given.write:
        write_json(folder_of(given.write) / f"{_name(given)}.json", found)
        write_page(given.write)
        parts.forget()


if __name__ == "__main__":
    main()
