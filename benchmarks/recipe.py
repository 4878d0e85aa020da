"""What schedule, clipping and the weight of locality are worth, at equal steps on the testbed.

``python -m benchmarks.recipe`` trains adapters for the testbed, each time with settings other than
the first row's, and prints how they do on records that nothing trains, their targets words
that no training taught. The gate is held open, so that locality is the adapters' own.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import torch

from easyedit_dualedit import DualEditConfig, DualEditor, load_model
from easyedit_dualedit.commands.records import testbed_records
from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.testbed import model_folder
from easyedit_dualedit.testbed.untaught import with_untaught_targets
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.trainer import train
from easyedit_dualedit.train.validation import Validation

logger = logging.getLogger(__name__)

Settings = Mapping[str, float | str]

FIRST: Settings = {
    "learning_rate": 4e-3,
    "schedule": "one-cycle",
    "gradient_clip": 1.0,
    "text_locality_weight": 0.0,
    "image_locality_weight": 0.0,
}
"""That the shipped adapters of the testbed were trained with."""


ROWS: Mapping[str, Settings] = {
    "one-cycle, clipped at 1, no locality loss": {},
    "constant rate": {"schedule": "constant"},
    "clipped at 100": {"gradient_clip": 100.0},
    "constant rate, clipped at 100, locality weight 0.1": {
        "schedule": "constant",
        "gradient_clip": 100.0,
        "text_locality_weight": 0.1,
        "image_locality_weight": 0.1,
    },
}


def measure(steps: int, count: int, seeds: int, folder: Path, only: str = "") -> str:
    """Return a Markdown table of all rows, percent.

    Args:
        steps: of training, for each row and seed.
        count: edits of each evaluation.
        seeds: trainings of each row, whose mean is given.
        folder: where the testbed's records are drawn.
        only: rows whose name does not have this in it are left out.
    """
    model, processor = load_model(str(model_folder()))
    taught = testbed_records(folder, "train")
    held = with_untaught_targets(testbed_records(folder, "eval")[:count])
    method = DualEditConfig.from_dict({"text_layer": 2, "vision_layer": 3, "width": 128})
    names = " | ".join(metric.replace("_", " ") for metric in METRICS)
    lines = [f"| {steps} steps of 16 edits | {names} |", "|---|" + "---|" * len(METRICS)]
    for name, changes in ROWS.items():
        if only not in name:
            continue
        found = []
        for seed in range(seeds):
            values = {"steps": steps, "batch_size": 16, "gate_steps": 0, "gate_records": 40}
            config = TrainingConfig.from_dict({**values, "seed": seed, **FIRST, **changes})
            torch.manual_seed(seed)
            editor = DualEditor(model, processor, method)
            train(editor, taught, config, progress=False)
            found.append(Validation(editor, held, taught, config).measure().adapters["all"])
        cells = " | ".join(f"{100 * mean(each[m] for each in found):.1f}" for m in METRICS)
        lines.append(f"| {name} | {cells} |")
        logger.info("%s", lines[-1])
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="rows with this in their name")
    parser.add_argument("--data", type=Path, default=Path("outputs/demo/data"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    table = measure(
        arguments.steps, arguments.count, arguments.seeds, arguments.data, arguments.only
    )
    sys.stdout.write(f"{table}\n")


if __name__ == "__main__":
    main()
