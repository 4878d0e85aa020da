"""Whether adapters can be taught what follows from an edit.

``python -m benchmarks.one_hop --output adapters/one_hop`` trains adapters as the hyperparameters
say, but for one thing: the text rephrase of a training record makes room for the question one hop
further and its answer, where the record has one and its target is its own. Then it makes every
held-out edit that has such a question, the gate held open, so that adapters alone are measured:
those of the hyperparameters' archive, and those that were taught. A training that was stopped goes
on, and adapters that are there are not trained again.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.text_only import add_records, answer_of, asked_editor, asked_records, parser_of
from easyedit_dualedit import DualEditor, GateConfig
from easyedit_dualedit.commands.records import own_records
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.measure.intervals import Interval, interval
from easyedit_dualedit.method.archive import WEIGHTS_FILE
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.drawn_targets import with_drawn_targets
from easyedit_dualedit.train.trainer import train

ASKED = ("one hop", "edit's target one hop further", "request", "text rephrase", "image rephrase")
_CHECKPOINT = "training.pt"
_GATE_RECORDS = 60


def one_hop_record(record: Record) -> Record:
    """Return a record, its question one hop further in place of the text rephrase if it has one."""
    return replace(record, text_rephrase=record.portability[0]) if record.portability else record


def teach(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig, folder: Path
) -> DualEditor:
    """Train the adapters of an editor on questions one hop further, save and return it.

    Args:
        editor: its gate decides nothing, so that few records are read for it.
        records: to train on.
        config: of the training.
        folder: that is written to.
    """
    drawn = with_drawn_targets(
        records, config.augment_targets, editor.encoder.tokenizer, config.seed
    )
    # What follows is known of a record's own target alone.
    taught = [
        made if made is not record else one_hop_record(record)
        for record, made in zip(records, drawn, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    given = replace(config, augment_targets=0.0, gate_steps=0, gate_records=_GATE_RECORDS)
    train(editor, taught, given, checkpoint=folder / _CHECKPOINT)
    editor.save(folder)
    (folder / _CHECKPOINT).unlink()
    return editor


def measure(editor: DualEditor, records: Sequence[Record]) -> dict[str, Interval]:
    """Return the shares of greedy answers that are right, the gate held open.

    Args:
        editor: edits its model.
        records: with a question one hop further.
    """
    gate = editor.open_gate()
    right: defaultdict[str, list[float]] = defaultdict(list)
    for record in tqdm(records, desc="edits", unit="edit"):
        edited = editor.edited(editor.read([record.request]), gate=gate)
        target = (record.request.target or "").strip()
        further = record.portability[0]
        answer = answer_of(edited, editor, replace(further, target=None), further.target or "")
        right[ASKED[0]].append(answer == (further.target or "").strip())
        right[ASKED[1]].append(answer == target)
        asked = (record.request, record.text_rephrase, record.image_rephrase)
        for name, query in zip(ASKED[2:], asked, strict=True):
            made = answer_of(edited, editor, replace(query, target=None), target)
            right[name].append(made == target)
    return {name: interval(right[name]) for name in ASKED}


def main() -> None:
    """Teach, measure and print."""
    parser = parser_of(__doc__)
    add_records(parser)
    parser.set_defaults(count=None)
    parser.add_argument("--output", type=Path, required=True, help="folder of the taught adapters")
    parser.add_argument("--steps", type=int, help="instead of those of the hparams")
    arguments = parser.parse_args()
    held_out = [record for record in asked_records(arguments) if record.portability]
    if not held_out:
        parser.error(f"the records of {arguments.hparams} have no questions one hop further")
    rows = {"as they are": asked_editor(arguments), "one hop taught": _taught(arguments)}
    sys.stdout.write(f"| adapters | {' | '.join(ASKED)} |\n|{'---|' * (len(ASKED) + 1)}\n")
    for name, editor in rows.items():
        found = measure(editor, held_out[: arguments.count]).values()
        cells = [f"{each.mean:.1f} ({each.low:.1f}–{each.high:.1f})" for each in found]
        sys.stdout.write(f"| {' | '.join([name, *cells])} |\n")


def _taught(arguments: argparse.Namespace) -> DualEditor:
    hparams = DualEditMultimodalTrainingHparams.from_hparams(arguments.hparams)
    if arguments.dtype:
        hparams.dtype = arguments.dtype
    model, processor = load_model(hparams.model_name, **hparams.placement)
    folder: Path = arguments.output
    if (folder / WEIGHTS_FILE).is_file():
        return DualEditor.load(model, processor, folder)
    config = hparams.training_config()
    torch.manual_seed(config.seed)
    method = replace(hparams.dualedit_config(), gate=GateConfig("open"))
    records = own_records(hparams.model_name, arguments.data, "train")
    if arguments.steps:
        config = replace(config, steps=arguments.steps)
    return teach(DualEditor(model, processor, method), records, config, folder)


if __name__ == "__main__":
    main()
