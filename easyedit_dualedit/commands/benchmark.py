"""The command `benchmark`: DualEdit and other methods make the same edits."""

import argparse
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_dualedit import __version__
from easyedit_dualedit.commands.arguments import (
    TRAINING_HPARAMS,
    add_memory,
    add_run,
    add_training_records,
    count,
    given_path,
)
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.measure.protocols import PROTOCOLS, ProtocolName
from easyedit_dualedit.settings import parse_value

if TYPE_CHECKING:
    from easyedit_dualedit.data.records import Record
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
    from easyedit_dualedit.processes import Processes

_VALIDATION = 20

HELP = "compare with EasyEdit's own methods"
DESCRIPTION = (
    "Make the same edits with DualEdit, with fine-tuning and with EasyEdit's own methods, one edit"
    " at a time; measure each under every protocol; write a table, a page, CSV and JSON. What needs"
    " training is trained first. The same command continues where it stopped."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes."""
    add_run(parser, "benchmark", TRAINING_HPARAMS)
    parser.add_argument(
        "--train",
        type=given_path,
        metavar="FILE",
        help="records to train on, and to look for leaks in; pictures are in --images",
    )
    parser.add_argument("--train-limit", type=count, help="use only the first of --train")
    parser.add_argument(
        "--stand-ins",
        action="store_true",
        help="draw a picture for every name, to try records without their pictures; the numbers"
        " then mean nothing",
    )
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="only these (default: all there are)"
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        metavar="NAME",
        help="only these (default: all that the records have questions of):"
        f" {', '.join(PROTOCOLS)}",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="METHOD.KEY=VALUE",
        help="a hyperparameter of a method, such as mend.max_iters=2000; repeatable",
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="take the records of one of N parts, such as 0/2; every part may have its own process",
    )
    parser.add_argument(
        "--tune",
        type=count,
        metavar="N",
        help="choose the hyperparameters of every method but DualEdit on validation records first,"
        " in N trials each: as it comes, and N - 1 draws",
    )
    parser.add_argument(
        "--validation",
        type=count,
        metavar="N",
        help=f"records that --tune sets aside from the training records (default: {_VALIDATION})",
    )
    add_memory(parser)
    parser.add_argument("--title", help="of the page")
    parser.add_argument(
        "--studies",
        nargs="+",
        type=given_path,
        default=[],
        metavar="FOLDER",
        help="of locate, ablate or train, whose plots the page shows (the training's curves are"
        " found where they lie beside the archive)",
    )
    add_training_records(parser)


def run(arguments: argparse.Namespace) -> None:
    """Measure DualEdit and EasyEdit's own methods on the same edits, and write every report."""
    from easyedit_dualedit.commands.hparams import read_hparams
    from easyedit_dualedit.commands.launchers import launched
    from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
    from easyedit_dualedit.processes import by_itself

    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams)
    with launched(hparams) as processes, by_itself():
        # The shard's records are dealt out again.
        place, parts = arguments.shard
        arguments.shard = (place + parts * processes.place, parts * processes.count)
        _benchmark(arguments, hparams, processes)


def _benchmark(
    arguments: argparse.Namespace,
    hparams: "DualEditMultimodalTrainingHparams",
    processes: "Processes",
) -> None:
    """Measure this process's share of the records; the first of all writes every report."""
    import torch

    from easyedit_dualedit.commands.benchmark_background import keep_background
    from easyedit_dualedit.commands.benchmark_data import read_data
    from easyedit_dualedit.commands.benchmark_report import add_seconds, keep_plan, write_reports
    from easyedit_dualedit.commands.benchmark_rows import (
        adapters_of,
        chosen_rows,
        with_shared_settings,
    )
    from easyedit_dualedit.commands.console import console
    from easyedit_dualedit.commands.records import is_testbed
    from easyedit_dualedit.commands.runs import alone_in, in_turn
    from easyedit_dualedit.commands.trained_targets import split_of
    from easyedit_dualedit.data.picture_files import PictureFiles
    from easyedit_dualedit.data.quirks import quirks
    from easyedit_dualedit.data.training_targets import targets_of
    from easyedit_dualedit.experiments.benchmark import run_benchmark
    from easyedit_dualedit.experiments.benchmark_folder import METHODS_FOLDER, clear_measured
    from easyedit_dualedit.experiments.plan import Plan
    from easyedit_dualedit.experiments.tuning import Budget, set_aside, tuned
    from easyedit_dualedit.files import require_writable
    from easyedit_dualedit.measure.questions import digest_of_some
    from easyedit_dualedit.measure.run import Run
    from easyedit_dualedit.measure.target_split import TargetSplit
    from easyedit_dualedit.model.families import BackboneConfig
    from easyedit_dualedit.model.loading import load_model
    from easyedit_dualedit.plugin.models import load_processor
    from easyedit_dualedit.report.leak_audit import audit_table
    from easyedit_dualedit.train.checkpoint import records_digest

    began = time.perf_counter()
    folder: Path = arguments.output / arguments.name
    require_writable(folder)
    if arguments.validation is not None and arguments.tune is None:
        raise ConfigError("--validation is of --tune; give that, too")
    settings = with_shared_settings(_given(arguments.settings), arguments.methods)
    if is_testbed(hparams.model_name):
        # It is too small to gain from a second thread, and threads that wait for each other on a
        # busy machine are twenty times slower.
        torch.set_num_threads(1)
    # What is not there is told before records are drawn.
    contenders = chosen_rows(hparams, arguments.methods, settings)
    backbone = BackboneConfig.read(hparams.backbone)
    with processes.first_alone():
        data = read_data(arguments, hparams.model_name, folder / "data")
    budget = None
    if arguments.tune is not None:
        number = arguments.validation or _VALIDATION
        validation, rest = set_aside(data.training, data.evaluated, number)
        budget = Budget(arguments.tune, validation)
        data = dataclasses.replace(data, training=rest)
    protocols = _protocols(data.evaluated, arguments.protocols)
    # Before anything is loaded or tried, so that a mistake in a file is told at once.
    leaks = data.audit()
    split = split_of(
        data.evaluated,
        archive=adapters_of(hparams, settings),
        file=arguments.training_records,
        targets=targets_of(data.training),
    )
    nearest = "comprehendedit" in protocols
    pictures = PictureFiles.opened([*data.evaluated, *data.training], nearest=nearest)

    def load() -> tuple[Any, Any]:
        model, _ = load_model(hparams.model_name, **hparams.placement)
        return model, load_processor(hparams.model_name)

    common = {
        "version": __version__,
        "versions": _versions(),
        "model": hparams.model_name,
        "data": records_digest(data.evaluated),
        "records": len(data.evaluated),
        "trained_on": records_digest(data.training) if data.training else None,
        "training_pictures": pictures.digest_of(data.training) if data.training else None,
        "protocols": protocols,
        "questions": digest_of_some(data.evaluated, protocols),
        "backbone": dataclasses.asdict(backbone) if backbone is not None else None,
        "dtype": str(hparams.dtype),
        "quantization": hparams.quantization,
        "seed": hparams.seed,
    }
    if budget is not None:
        common["tuning"] = {
            "trials": budget.trials,
            "validation": records_digest(budget.validation, with_pictures=True),
        }
    # A changed configuration is refused before anything is loaded or trained.
    place, parts = arguments.shard
    with alone_in(folder, part=f"{place}-of-{parts}" if parts > 1 else None):
        with processes.first_alone(), in_turn(folder):
            if arguments.fresh:
                # Of processes started together, the first comes before any other begins.
                whole = processes.is_first and parts == processes.count
                clear_measured(folder, arguments.shard, whole=whole)
            Run(folder, common, fresh=arguments.fresh)
            keep_background(folder, adapters_of(hparams, settings), arguments.studies)
        close = {}
        if "specificity" in protocols:
            told = {name: common[name] for name in ("model", "dtype", "quantization", "backbone")}
            close = data.close_queries(load, backbone, folder, pictures=pictures, model=told)
        plan = Plan(
            hparams.model_name,
            load,
            data.evaluated,
            protocols,
            data.training,
            close,
            data.images,
            hparams.device,
            backbone,
            settings,
            hparams.seed,
            pictures.shown_by(data.evaluated, close),
            arguments.shard,
        )
        tuning = None
        if budget is not None:
            plan, contenders, tuning = tuned(plan, contenders, budget, folder, decided_by=common)
        given = {name: dict(value) for name, value in settings.items()}
        about = {
            "title": arguments.title or f"{data.name}, {Path(hparams.model_name).name}",
            "data": data.described(),
            "audit": leaks.to_dict() if leaks is not None else None,
            "quirks": quirks(data.evaluated),
            "targets": split.to_dict() if isinstance(split, TargetSplit) else {"absent": split},
            "settings": {**common, "given": given},
            "tuning": tuning,
            "versions": common["versions"],
            "seed": hparams.seed,
            "indices": [record.index for record in data.evaluated],
            "order": [contender.name for contender in contenders],
            "contenders": {
                contender.name: {
                    "reads_label": contender.reads_label,
                    "remarks": list(contender.remarks),
                }
                for contender in contenders
            },
        }
        with in_turn(folder):
            keep_plan(folder, about)
        shown = console()
        if leaks is not None and processes.is_first:
            shown.print(audit_table(leaks).for_terminal())
        run_benchmark(plan, contenders, folder, progress=processes.is_first)
        processes.bring_together(folder, f"{METHODS_FOLDER}/**/*.json")
        if not processes.is_first:
            return
        with in_turn(folder):
            add_seconds(folder, time.perf_counter() - began)
            write_reports(folder, shown, data.images)
    _require_named(folder, arguments.methods or [])


def _protocols(
    records: "Sequence[Record]", wanted: Sequence[ProtocolName] | None
) -> list[ProtocolName]:
    """Return the protocols to measure, in the order of the tables."""
    from easyedit_dualedit.measure.questions import asked_protocols, require_questions

    if wanted is None:
        return asked_protocols(records, PROTOCOLS)
    require_questions(records, wanted)
    return [protocol for protocol in PROTOCOLS if protocol in wanted]


def _require_named(folder: Path, names: Sequence[str]) -> None:
    """Refuse to call it a success where a method failed that was asked for by name.

    Raises:
        DataError: naming them.
    """
    from easyedit_dualedit.experiments.benchmark_folder import failure

    failures = {name: failure(folder, name) for name in names}
    told = [f"{name} failed ({error})" for name, error in failures.items() if error is not None]
    if told:
        raise DataError(
            f"{'; '.join(told)}; the other rows are written, the same command tries again"
        )


def _given(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return method -> setting -> value of `METHOD.KEY=VALUE` texts."""
    from easyedit_dualedit.experiments.benchmark_folder import slug

    settings: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        method, dot, key = name.strip().partition(".")
        if not (equals and dot and method and key):
            raise ConfigError(f"--set {pair!r}: give METHOD.KEY=VALUE, such as mend.max_iters=2000")
        settings.setdefault(slug(method), {})[key] = parse_value(value, source=f"--set {pair}")
    return settings


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from easyedit_dualedit.plugin.rows.roster import easyedit_version

    return {
        "easyedit_dualedit": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "easyedit": easyedit_version(),
    }


def _shard(text: str) -> tuple[int, int]:
    try:
        place, parts = (int(part) for part in text.split("/"))
    except ValueError:
        place, parts = 0, 0
    if not 0 <= place < parts:
        raise argparse.ArgumentTypeError(f"{text!r} is no shard such as 0/2 or 1/2")
    return place, parts
