"""The command `many`: many edits in one model are measured, and reported with plots."""

import argparse
import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_dualedit import __version__
from easyedit_dualedit.commands.arguments import (
    EDIT_HPARAMS,
    add_memory,
    add_run,
    add_training_records,
    count,
    given_path,
)
from easyedit_dualedit.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.processes import Processes

HELP = "measure many edits in one model"
DESCRIPTION = (
    "Make up to a thousand edits in one model, one after the other, and ask about all of them"
    " afterwards; beside DualEdit, EasyEdit's GRACE, WISE and LoRA where EasyEdit's master is"
    " installed. Also: what the gate opens for as edits grow in number, what routing costs, and"
    " quality against size. The same command continues where it stopped."
)

_SIZES_AT = 100
"""Edits, at most, that quality against size is measured with."""

_ROUTED_COUNTS = (1, 100, 1000, 10_000)
"""Numbers of edits whose routing is timed, as far as there are records for them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_run(parser, "many", EDIT_HPARAMS)
    parser.add_argument(
        "--counts",
        nargs="+",
        type=count,
        default=[1, 10, 100, 1000],
        metavar="N",
        help="numbers of edits (default: 1 10 100 1000)",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="only these (default: all there are)"
    )
    add_memory(parser)
    add_training_records(parser)
    parser.add_argument(
        "--report",
        type=given_path,
        metavar="FILE",
        help="also write the report here, plots beside it",
    )


def run(arguments: argparse.Namespace) -> None:
    """Measure many edits, method by method, and write the report."""
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.launchers import launched
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
    from easyedit_dualedit.processes import by_itself

    hparams = read_hparams(arguments, DualEditMultimodalHparams)
    with launched(hparams) as processes, by_itself():
        _many(arguments, hparams, processes)


def _many(
    arguments: argparse.Namespace, hparams: "DualEditMultimodalHparams", processes: "Processes"
) -> None:
    """Ask about this process's share of the edits; the first writes the report of all."""
    import torch
    import transformers

    from easyedit_dualedit.commands.editors import editor_of
    from easyedit_dualedit.commands.many_methods import measure, methods_of, sized_methods
    from easyedit_dualedit.commands.many_report import GATE_FILE, write_reports
    from easyedit_dualedit.commands.records import is_testbed
    from easyedit_dualedit.commands.runs import alone_in, loaded_as, part_of
    from easyedit_dualedit.commands.trained_targets import split_of
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.experiments.gate_rates import routing_costs, routing_rates
    from easyedit_dualedit.experiments.many_edits import UneditedAnswers, groups_of, untouched
    from easyedit_dualedit.files import digest_of, read_json, require_writable, write_json
    from easyedit_dualedit.measure.run import CASES_FOLDER, Run
    from easyedit_dualedit.method.edit_memory import DEFAULT_PRECISION
    from easyedit_dualedit.plugin.rows.roster import easyedit_version
    from easyedit_dualedit.train.checkpoint import records_digest

    folder: Path = arguments.output / arguments.name
    counts = sorted(set(arguments.counts))
    # What cannot end well is told before records are drawn and a model is loaded.
    require_writable(folder)
    if arguments.report is not None:
        if arguments.report.is_dir():
            raise ConfigError(f"--report {arguments.report} is a folder; name a file in it")
        require_writable(arguments.report.parent)
    methods = methods_of(hparams, folder, arguments.methods)
    with processes.first_alone():
        records = _records(arguments, hparams.model_name, folder / "data", counts)
    if len(records) < counts[-1]:
        raise ConfigError(
            f"--counts {counts[-1]} needs as many records, there are {len(records)}; lower it"
        )
    if is_testbed(hparams.model_name):
        torch.set_num_threads(1)  # it is too small to gain from a second one
    pictures = PictureFiles.opened(records, nearest=False)
    editor = editor_of(hparams)
    settings = {
        "version": __version__,
        "model": hparams.model_name,
        **loaded_as(hparams),
        "archive": digest_of(Path(str(hparams.archive))) if hparams.archive else None,
        # All else that the hyperparameters say of the method agrees with the archive.
        "gate": dataclasses.asdict(editor.config.gate),
        "data": records_digest(records),
        "records": len(records),
        "precision": DEFAULT_PRECISION,
        "easyedit": easyedit_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with alone_in(folder, part=part_of(processes)):
        with processes.first_alone():
            Run(folder, settings, fresh=arguments.fresh and processes.is_first)
        # Below the folder that `fresh` removes, so that nothing of an earlier run is taken for new.
        cases = folder / CASES_FOLDER
        shown_by = pictures.shown_by(records)
        groups = groups_of(records, counts)
        edited = {record.index: record for group in groups for record in group.records}
        split = split_of(
            list(edited.values()), archive=hparams.archive, file=arguments.training_records
        )
        sized = groups_of(records, [min(_SIZES_AT, counts[-1])])
        unedited = UneditedAnswers(
            editor.backbone.model, editor.encoder, Run(cases / "unedited", {}, shown=shown_by)
        )
        for name, make in methods.items():
            measure(name, make(), groups, unedited, editor.encoder, cases, pictures, processes)
        for name, method in sized_methods(editor).items():
            measure(name, method, sized, unedited, editor.encoder, cases, pictures, processes)
        processes.bring_together(folder, f"{CASES_FOLDER}/**/*.json")
        if not processes.is_first:
            return
        gate = read_json(cases / GATE_FILE) or {}
        (shown,) = set(pictures.shown_by(records, together=True).values())
        if gate.get("pictures", shown) != shown:
            gate = {}
        if gate.get("counts") != counts:
            # What routing costs depends on other counts.
            gate = {key: value for key, value in gate.items() if key not in ("rates", "untouched")}
        gate |= {"pictures": shown, "counts": counts}
        if "rates" not in gate:
            gate["rates"] = routing_rates(editor, records, [n for n in counts if n <= len(records)])
            write_json(cases / GATE_FILE, gate)
        if "untouched" not in gate:
            gate["untouched"] = dict(untouched(editor, records[: counts[-1]], DEFAULT_PRECISION))
            write_json(cases / GATE_FILE, gate)
        if "costs" not in gate:
            routed = _routed(arguments, hparams.model_name, records, folder / "routed")
            among = [number for number in _ROUTED_COUNTS if number <= len(routed)]
            gate["costs"] = routing_costs(editor, routed, among)
            write_json(cases / GATE_FILE, gate)
        machine = f"{platform.machine()}, {torch.get_num_threads()} thread"
        about = {**settings, "machine": machine, "own_records": arguments.data is None}
        write_reports(folder, groups, sized, about, arguments.report, split)


def _records(
    arguments: argparse.Namespace, model: str, folder: Path, counts: "Sequence[int]"
) -> "list[Record]":
    from easyedit_dualedit.commands.records import own_records, require_no_template
    from easyedit_dualedit.data.records import load_records
    from easyedit_dualedit.experiments.many_edits import asked_among

    if arguments.data is None:
        require_no_template(arguments)
        if arguments.images is not None:
            raise ConfigError("--images goes with --data; give both, or neither")
        number = max(map(asked_among, counts))
        return own_records(model, folder, "eval", number)[: arguments.limit]
    if arguments.images is None:
        raise ConfigError("--data needs --images")
    limit = arguments.limit
    return load_records(
        arguments.data,
        arguments.images,
        template=arguments.template,
        allow_outside=arguments.allow_outside,
        limit=limit,
    )


def _routed(
    arguments: argparse.Namespace, model: str, records: "Sequence[Record]", folder: Path
) -> "Sequence[Record]":
    """Return the records whose edits are routed among: of our models, more than are edited, unless
    their number is limited."""
    from easyedit_dualedit.commands.records import own_records

    if arguments.data is not None or arguments.limit is not None:
        return records
    return own_records(model, folder, "train", _ROUTED_COUNTS[-1])
