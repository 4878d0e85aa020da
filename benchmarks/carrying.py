"""What lets adapters say words that training never taught: each part left out, at equal compute.

``python -m benchmarks.carrying`` trains adapters for the testbed with each part left out, as many
steps each, and prints how many edits of its evaluation split take, with the answers of that split
(all of them seen in training) and with words that no training taught. The gate is open, answers
are generated freely.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from easyedit_dualedit import DualEditConfig, DualEditor, Query, load_model
from easyedit_dualedit.commands.records import testbed_records
from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.files import write_text
from easyedit_dualedit.testbed import model_folder
from easyedit_dualedit.testbed.untaught import with_untaught_targets
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.trainer import train

logger = logging.getLogger(__name__)

_BATCH = 12
_LONGEST = 24
"""Tokens of a generated answer; longer than any that is asked for."""


@dataclass(frozen=True)
class Variant:
    """A part left out."""

    name: str
    config: Mapping[str, Any]
    training: Mapping[str, Any]


VARIANTS = (
    Variant("word path, answer tokens, drawn targets", {}, {}),
    Variant("targets of the data alone", {}, {"augment_targets": 0.0}),
    Variant("without the answer's tokens", {"answer_tokens": False}, {}),
    Variant("without the word path", {"word_path": False}, {}),
    Variant(
        "none of the three (as before)",
        {"word_path": False, "answer_tokens": False},
        {"augment_targets": 0.0},
    ),
)


def taking(editor: DualEditor, records: Sequence[Record]) -> dict[str, float]:
    """Return how many edits take, in percent, for the request and each rephrase."""
    tokenizer = editor.encoder.tokenizer
    right = dict.fromkeys(METRICS[:3], 0)
    for start in range(0, len(records), _BATCH):
        part = records[start : start + _BATCH]
        signals = editor.read([record.request for record in part])
        edited = editor.edited(signals, assignment=torch.arange(len(part)), gate=editor.open_gate())
        for metric in right:
            queries: Sequence[Query] = metric_queries(part, metric)
            batch = editor.encoder.encode(queries, with_target=False)
            made = edited.generate(**batch.inputs, max_new_tokens=_LONGEST, do_sample=False)
            answers = tokenizer.batch_decode(
                made[:, batch.inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right[metric] += sum(
                answer.strip() == (query.target or "").strip()
                for answer, query in zip(answers, queries, strict=True)
            )
    return {metric: 100 * count / len(records) for metric, count in right.items()}


def measure(steps: int, count: int, folder: Path) -> str:
    """Return a Markdown table of all variants.

    Args:
        steps: of training, for each.
        count: edits of each evaluation.
        folder: where the testbed's records are drawn.
    """
    model, processor = load_model(str(model_folder()))
    taught = testbed_records(folder, "train")
    known = testbed_records(folder, "eval")[:count]
    splits = {"taught": known, "never taught": with_untaught_targets(known)}
    lines = [
        f"| {steps} steps of 16 edits | answers | reliability | text generality"
        " | image generality |",
        "|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        values = {"text_layer": 2, "vision_layer": 3, "width": 128} | dict(variant.config)
        settings = {
            "steps": steps,
            "batch_size": 16,
            "learning_rate": 4e-3,
            "schedule": "one-cycle",
            "gradient_clip": 1.0,
            "image_locality_weight": 0.0,
            "text_locality_weight": 0.0,
            "gate_steps": 0,
        } | dict(variant.training)
        torch.manual_seed(0)
        editor = DualEditor(model, processor, DualEditConfig.from_dict(values))
        train(editor, taught, TrainingConfig.from_dict(settings))
        for name, records in splits.items():
            shares = taking(editor, records)
            cells = " | ".join(f"{share:.1f}" for share in shares.values())
            lines.append(f"| {variant.name} | {name} | {cells} |")
            logger.info("%s", lines[-1])
    return "\n".join(lines)


def main() -> None:
    """Measure and print, and write the page if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--data", type=Path, default=Path("outputs/demo/data"))
    parser.add_argument("--write", type=Path, help="a page of documentation to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    table = measure(arguments.steps, arguments.count, arguments.data)
    logger.info("%s", table)
    if arguments.write is not None:
        page = (
            "# Words that training never taught\n\n"
            f"`python -m benchmarks.carrying --steps {arguments.steps} --count {arguments.count}`"
            f" wrote this page (torch {torch.__version__}): edits of the testbed's evaluation"
            " split that take, in percent, under `generate` with an open gate; exact answers."
            " *Taught* are the split's own answers, 30 words that are all in its training split;"
            " *never taught* are one to three English words"
            " (`easyedit_dualedit/testbed/untaught.py`).\n\n" + table + "\n"
        )
        write_text(arguments.write, page)


if __name__ == "__main__":
    main()
