"""The command `evaluate`: each record of a file is edited alone, and all its queries are asked."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from easyedit_dualedit.commands.arguments import (
    EDIT_HPARAMS,
    add_memory,
    add_run,
    add_training_records,
    given_path,
)
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.measure.protocols import OF_SOME_RECORDS
from easyedit_dualedit.method.config import PUBLISHED_THRESHOLD, GateConfig, GateKind

if TYPE_CHECKING:
    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.measure.evaluation import EditMaker
    from easyedit_dualedit.method.active_edits import EditSignal
    from easyedit_dualedit.method.editor import DualEditor
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.processes import Processes

HELP = "edit the records of a file and measure"
DESCRIPTION = (
    "Edit every record of a file in MMEdit's format, alone, and measure all of its queries."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_run(parser, "evaluate", EDIT_HPARAMS)
    parser.add_argument(
        "--gates",
        nargs="+",
        choices=get_args(GateKind),
        metavar="KIND",
        help=f"a row for each of these gates ({', '.join(get_args(GateKind))}), instead of the"
        " hparams' gate",
    )
    parser.add_argument(
        "--specificity",
        action="store_true",
        help="also ask RI, NI and CI: half of the edit, and the samples most like it",
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=OF_SOME_RECORDS,
        default=[],
        metavar="NAME",
        help="also these, of records that have questions of them:"
        f" {', '.join(OF_SOME_RECORDS)} (visedit and generate are always measured)",
    )
    parser.add_argument(
        "--others",
        type=given_path,
        metavar="FILE",
        help="records that --specificity draws other pictures and questions from, usually the"
        " training records; pictures are in --images (default: the other records of --data)",
    )
    add_memory(parser)
    add_training_records(parser)


def run(arguments: argparse.Namespace) -> None:
    """Edit every record of a file, measure all of its queries and print the table."""
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.launchers import launched
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.processes import by_itself

    hparams = read_hparams(arguments, DualEditMultimodalHparams)
    given = {key: value for key, value in hparams.to_dict().items() if value is not None}
    with launched(hparams) as processes, by_itself():
        _evaluate(arguments, hparams, given, processes)


def _evaluate(
    arguments: argparse.Namespace,
    hparams: "DualEditMultimodalHparams",
    given: Mapping[str, Any],
    processes: "Processes",
) -> None:
    """Evaluate this process's share of the records; the first prints all.

    Args:
        arguments: of the command.
        hparams: of the edits, on this process's device.
        given: the hyperparameters as they were given, which are the same in all processes.
        processes: that share the records.
    """
    from easyedit_dualedit.commands.editors import editor_of
    from easyedit_dualedit.commands.runs import alone_in, measure_and_print, part_of, settings_of
    from easyedit_dualedit.commands.trained_targets import split_of
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
    from easyedit_dualedit.files import require_writable
    from easyedit_dualedit.measure.close_queries import close_queries
    from easyedit_dualedit.measure.questions import digest_of_some, require_questions
    from easyedit_dualedit.measure.run import Run, clear_queries
    from easyedit_dualedit.method.fingerprint import ModelFingerprint
    from easyedit_dualedit.train.checkpoint import records_digest

    folder: Path = arguments.output / arguments.name
    require_writable(folder)
    with processes.first_alone():
        records, others = _read(arguments, hparams.model_name, folder / "data")
    # Before the model is loaded, so that a mistake in a file is told at once.
    nearest = "comprehendedit" in arguments.protocols
    pictures = PictureFiles.opened([*records, *others], nearest=nearest)
    require_questions(records, arguments.protocols)
    protocols = [protocol for protocol in OF_SOME_RECORDS if protocol in arguments.protocols]
    split = split_of(records, archive=hparams.archive, file=arguments.training_records)
    editor = editor_of(hparams)
    methods: dict[str, EditMaker] = {"unedited": lambda _record: None}
    read = _ReadOnce(editor)
    for kind in arguments.gates or [None]:
        name = DUALEDIT if kind is None else f"{DUALEDIT}, {kind} gate"
        methods[name] = _with_gate(editor, read, kind)
    # Only where they are asked, so that runs that were begun without them go on.
    asked = {"protocols": protocols, "questions": digest_of_some(records, protocols)}
    settings = settings_of(
        records,
        methods,
        {"archive": Path(hparams.archive or "")},
        **(asked if protocols else {}),
        hparams=given,
        others=records_digest(others) if arguments.specificity else None,
    )
    further = None
    shown = list(methods)[1]
    with alone_in(folder, part=part_of(processes)):
        # Before anything is drawn: other settings are told at once.
        with processes.first_alone():
            fresh = arguments.fresh and processes.is_first
            if fresh:
                clear_queries(folder)
            Run(folder, settings, fresh=fresh)
        if arguments.specificity:
            fingerprint = ModelFingerprint.of(editor.backbone).to_dict()
            drawn_from = [
                *(records_digest(part) for part in (records, others)),
                *(pictures.digest_of(part) for part in (records, others)),
                json.dumps([given, fingerprint], sort_keys=True),
            ]
            further = close_queries(
                records, others, folder, lambda: editor.encoder, drawn_from=drawn_from
            )
        stored = Run(folder, settings, shown=pictures.shown_by(records, further))
        measure_and_print(
            stored,
            records,
            editor.encoder,
            methods,
            shown,
            further,
            protocols=protocols,
            split=split,
            processes=processes,
        )


def _read(
    arguments: argparse.Namespace, model: str, folder: Path
) -> "tuple[list[Record], list[Record]]":
    """Return the records to edit, and those that specificity draws from."""
    from easyedit_dualedit.commands.records import own_records, records_of
    from easyedit_dualedit.data.records import load_records

    if arguments.others is not None and arguments.data is None:
        raise ConfigError(
            "--others needs --data and --images; without them a model of ours has its own"
        )
    if arguments.others is not None and not arguments.specificity:
        raise ConfigError("--others is what --specificity draws from; give both, or neither")
    records = records_of(arguments, model, folder, "eval")
    if arguments.data is None:
        return records, own_records(model, folder, "train") if arguments.specificity else []
    if arguments.others is None:
        return records, records
    others = load_records(
        arguments.others,
        arguments.images,
        template=arguments.template,
        allow_outside=arguments.allow_outside,
    )
    return records, others


class _ReadOnce:
    """Reads the edit of a record once, for the rows of all gates."""

    def __init__(self, editor: "DualEditor"):
        self._editor = editor
        self._read: tuple[Record, list[EditSignal]] | None = None

    def __call__(self, record: "Record") -> "list[EditSignal]":
        if self._read is None or self._read[0] is not record:
            self._read = record, self._editor.read([record.request])
        return self._read[1]


def _with_gate(editor: "DualEditor", read: _ReadOnce, kind: GateKind | None) -> "EditMaker":
    if kind is None:
        return lambda record: editor.edited(read(record))
    threshold = PUBLISHED_THRESHOLD if kind == "last-token" else None
    gate = editor.gate.with_config(GateConfig(kind=kind, threshold=threshold))
    if gate.kind != kind:
        raise ConfigError(f"the archive holds no trained {kind} gate; leave it out of --gates")
    return lambda record: editor.edited(read(record), gate=gate)
