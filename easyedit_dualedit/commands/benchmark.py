"""The commands `benchmark` and `merge`: read what was asked for, run it, write every report."""

import argparse
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from easyedit_dualedit import __version__, testbed
from easyedit_dualedit.commands.demo_data import demo_records, is_testbed
from easyedit_dualedit.commands.shared import console, read_hparams
from easyedit_dualedit.data.leak_audit import Audit, audit, audit_table
from easyedit_dualedit.data.quirks import quirks
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.data.stand_ins import draw_stand_ins, picture_names
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.benchmark import run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, cases_of, slug
from easyedit_dualedit.experiments.dualedit_rows import Recipe, dualedit_contenders
from easyedit_dualedit.experiments.finetuning_rows import finetuning_contenders
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.experiments.results import (
    costs,
    costs_table,
    headline,
    metrics_of,
    missing,
    protocol_table,
    stored_names,
    to_csv,
    to_markdown,
)
from easyedit_dualedit.experiments.shards import merge as merge_shards
from easyedit_dualedit.files import read_json, write_json, write_text
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.measure.protocols import PROTOCOLS, ProtocolName
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.measure.specificity import specificity_queries
from easyedit_dualedit.method.config import DualEditConfig, TrainingConfig
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.hparams import DualEditMultimodalTrainingHparams
from easyedit_dualedit.plugin.models import load_processor
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders, easyedit_version
from easyedit_dualedit.report.page import write_page
from easyedit_dualedit.settings import parse_value
from easyedit_dualedit.train.checkpoint import records_digest

COSTS_FILE = "costs.json"
PLAN_FILE = "plan.json"
_TESTBED_COUNT = 200
_PUBLISHED = "published"


def benchmark(arguments: argparse.Namespace) -> None:
    """Measure DualEdit and EasyEdit's own methods on the same edits, and write every report."""
    began = time.perf_counter()
    folder: Path = arguments.output / arguments.name
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams, "TRAINING/DualEdit")
    protocols = _protocols(arguments.protocols)
    settings = _given(arguments.settings)
    if is_testbed(hparams.model_name):
        # It is too small to gain from a second thread, and threads that wait for each other on a
        # busy machine are twenty times slower.
        torch.set_num_threads(1)
    evaluated, training, images = _data(arguments, hparams, folder / "data")
    named = None if arguments.methods is None else [*arguments.methods, *settings]
    contenders = _chosen(_contenders(hparams, named), arguments.methods, settings)
    backbone = BackboneConfig.read(hparams.backbone)

    def load() -> tuple[Any, Any]:
        model, _ = load_model(hparams.model_name, **hparams.placement)
        return model, load_processor(hparams.model_name)

    common = {
        "version": __version__,
        "versions": _versions(),
        "model": hparams.model_name,
        "data": records_digest(evaluated, with_pictures=True),
        "records": len(evaluated),
        "trained_on": records_digest(training) if training else None,
        "protocols": list(protocols),
        "backbone": dataclasses.asdict(backbone) if backbone is not None else None,
        "dtype": str(hparams.dtype),
        "quantization": hparams.quantization,
        "seed": hparams.seed,
    }
    # A changed configuration is refused before anything is loaded or trained.
    Run(folder, common, fresh=arguments.fresh)
    close = {}
    if "specificity" in protocols:
        close = _close(evaluated, training or evaluated, load, backbone)
    plan = Plan(
        hparams.model_name,
        load,
        evaluated,
        protocols,
        training,
        close,
        images,
        hparams.device,
        backbone,
        settings,
        hparams.seed,
        arguments.shard,
    )
    found = _audited(arguments, evaluated, training, images)
    told = {
        "title": arguments.title or f"{_data_name(arguments)}, {Path(hparams.model_name).name}",
        "data": {
            "evaluated": _described(evaluated, _data_name(arguments)),
            "trained_on": _described(training, _train_name(arguments)) if training else None,
        },
        "audit": found.to_dict() if found is not None else None,
        "quirks": quirks(evaluated),
        "settings": {**common, "given": {name: dict(value) for name, value in settings.items()}},
        "versions": common["versions"],
        "seed": hparams.seed,
        "indices": [record.index for record in evaluated],
        "order": [contender.name for contender in contenders],
        "contenders": {
            contender.name: {
                "reads_label": contender.reads_label,
                "remarks": list(contender.remarks),
            }
            for contender in contenders
        },
    }
    _keep_plan(folder, told)
    shown = console()
    if found is not None:
        shown.print(audit_table(found))
    run_benchmark(plan, contenders, folder)
    _add_seconds(folder, time.perf_counter() - began)
    _report(folder, shown, images)


def merge(arguments: argparse.Namespace) -> None:
    """Put the shards of a run together and write every report."""
    merge_shards(arguments.folders, arguments.output)
    for source in arguments.folders:
        plan = read_json(source / PLAN_FILE)
        if plan is not None:
            _keep_plan(arguments.output, plan)
    _report(arguments.output, console(), arguments.images)


def _report(folder: Path, shown: Console, images: Path | None) -> None:
    plan = read_json(folder / PLAN_FILE)
    if plan is None:
        raise ConfigError(f"{folder} holds no {PLAN_FILE}; run the benchmark again")
    indices, names = plan.pop("indices"), plan.pop("order")
    metrics = metrics_of(folder, names, indices, plan)
    if metrics is None:
        lacking = missing(folder, names, indices)
        shown.print(
            f"not complete: {', '.join(f'{name} lacks {n}' for name, n in lacking.items())} of"
            f" {len(indices)} cases; run the other shards, or this command without --shard"
        )
        return
    found = costs(folder, names, indices)
    write_json(folder / METRICS_FILE, metrics)
    earlier = read_json(folder / COSTS_FILE) or {}
    write_json(folder / COSTS_FILE, {"seconds": earlier.get("seconds"), "methods": found})
    write_text(folder / "results.md", to_markdown(metrics, found))
    write_text(folder / "results.csv", to_csv(metrics))
    cases = {name: cases_of(folder, name, indices) for name in (UNEDITED, *names)}
    methods = {name: {**entry, "costs": found[name]} for name, entry in metrics["methods"].items()}
    write_page(
        folder / "results.html",
        {**metrics, "methods": methods, "seconds": earlier.get("seconds")},
        cases,
        pictures=_pictures(cases[UNEDITED], images),
    )
    for protocol in PROTOCOLS:
        if any(protocol in method["protocols"] for method in metrics["methods"].values()):
            shown.print(protocol_table(metrics, protocol))
    shown.print(costs_table(found))
    shown.print(headline(metrics))
    shown.print(
        f"written: {folder / 'results.html'}, and beside it results.md, results.csv,"
        f" {METRICS_FILE}, {COSTS_FILE} and one JSON per case"
    )


def _contenders(
    hparams: DualEditMultimodalTrainingHparams, wanted: Sequence[str] | None
) -> list[Contender]:
    """Return every method that can be measured here.

    EasyEdit's are left out where only others are wanted: importing it takes seconds.
    """
    config, training = hparams.dualedit_config(), hparams.training_config()
    archive = None if hparams.archive is None else Path(hparams.archive)
    published = None
    if is_testbed(hparams.model_name):
        archive = archive or testbed.adapters_folder("default")
        published = testbed.adapters_folder(_PUBLISHED)
    as_published = DualEditConfig.preset(
        _PUBLISHED,
        text_layer=config.text_layer,
        vision_layer=config.vision_layer,
        width=config.width,
        heads=config.heads,
        backbone=config.backbone,
    )
    trained_so = TrainingConfig.preset(
        _PUBLISHED,
        steps=training.steps,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        gradient_clip=training.gradient_clip,
        schedule=training.schedule,
        seed=training.seed,
    )
    own = Recipe(config, training, archive)
    as_published_too = Recipe(as_published, trained_so, published)
    ours = [*dualedit_contenders(own, as_published_too), *finetuning_contenders()]
    known = {UNEDITED, *(slug(contender.name) for contender in ours)}
    if wanted is not None and {slug(name) for name in wanted} <= known:
        return ours
    return [*ours, *easyedit_contenders()]


def _chosen(
    every: Sequence[Contender],
    wanted: Sequence[str] | None,
    settings: Mapping[str, Mapping[str, Any]],
) -> list[Contender]:
    known = {slug(contender.name): contender for contender in every}
    chosen = list(known) if wanted is None else [slug(name) for name in wanted]
    unknown = sorted({*chosen, *settings} - set(known) - {UNEDITED})
    if unknown:
        raise ConfigError(f"no methods {unknown}; there are {sorted(known)}")
    return [known[name] for name in dict.fromkeys(chosen) if name != UNEDITED]


def _protocols(wanted: Sequence[str] | None) -> list[ProtocolName]:
    chosen = PROTOCOLS if wanted is None else wanted
    return [protocol for protocol in PROTOCOLS if protocol in chosen]


def _given(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return method -> setting -> value of `METHOD.KEY=VALUE` texts."""
    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        method, dot, key = name.strip().partition(".")
        if not (equals and dot and method and key):
            raise ConfigError(f"--set {pair!r}: give METHOD.KEY=VALUE, such as mend.max_iters=2000")
        found.setdefault(slug(method), {})[key] = parse_value(value, source=f"--set {pair}")
    return found


def _data(
    arguments: argparse.Namespace, hparams: DualEditMultimodalTrainingHparams, folder: Path
) -> tuple[list[Record], list[Record], Path]:
    """Return the records to measure, those to train on, and the folder of their pictures."""
    if arguments.data is None:
        if arguments.images is not None or arguments.train is not None or arguments.stand_ins:
            raise ConfigError("--images, --train and --stand-ins need --data")
        if not is_testbed(hparams.model_name):
            raise ConfigError(
                f"the testbed's records say nothing about {hparams.model_name}; give --data and"
                " --images"
            )
        count = arguments.limit or _TESTBED_COUNT
        training = demo_records(folder, "train")[: arguments.train_limit]
        return demo_records(folder, "eval")[:count], training, folder / "images"
    files = [path for path in (arguments.data, arguments.train) if path is not None]
    images = arguments.images
    if arguments.stand_ins:
        images = folder / "stand-ins"
        limits = (arguments.limit, arguments.train_limit)
        for path, limit in zip(files, limits, strict=False):
            draw_stand_ins(picture_names(path, limit=limit), images)
    if images is None:
        raise ConfigError("--data needs --images, or --stand-ins to try it without the pictures")
    template = arguments.template
    evaluated = load_records(arguments.data, images, template=template, limit=arguments.limit)
    training = []
    if arguments.train is not None:
        training = load_records(
            arguments.train, images, template=template, limit=arguments.train_limit
        )
    return evaluated, training, images


def _audited(
    arguments: argparse.Namespace,
    evaluated: Sequence[Record],
    training: Sequence[Record],
    images: Path,
) -> Audit | None:
    """Return the leak audit of the whole files, however few of their records are used."""
    if not training:
        return None
    if arguments.data is None:
        return audit(evaluated, training)
    whole = [
        load_records(path, images, check_pictures=False)
        for path in (arguments.data, arguments.train)
    ]
    return audit(*whole)


def _close(
    evaluated: Sequence[Record],
    others: Sequence[Record],
    load: Any,
    backbone: BackboneConfig | None,
) -> dict[int, Mapping[str, Query]]:
    model, processor = load()
    encoder = Encoder(Backbone.of(model, backbone), processor)
    queries = specificity_queries(evaluated, others, encoder)
    return {record.index: more for record, more in zip(evaluated, queries, strict=True)}


def _keep_plan(folder: Path, told: Mapping[str, Any]) -> None:
    """Write what the run is about, keeping the methods that were measured in it before."""
    earlier = read_json(folder / PLAN_FILE)
    merged = dict(told)
    if earlier is not None:
        stored = set(stored_names(folder)) if (folder / "methods").is_dir() else set()
        before = [name for name in earlier["order"] if name in stored]
        merged["order"] = [*before, *(name for name in told["order"] if name not in before)]
        merged["contenders"] = {**earlier["contenders"], **told["contenders"]}
    write_json(folder / PLAN_FILE, merged)


def _add_seconds(folder: Path, seconds: float) -> None:
    earlier = read_json(folder / COSTS_FILE) or {}
    total = (earlier.get("seconds") or 0.0) + seconds
    write_json(folder / COSTS_FILE, {**earlier, "seconds": total})


def _pictures(cases: Sequence[Mapping[str, Any]], images: Path | None) -> dict[str, Path]:
    if images is None:
        return {}
    names = {query["image"] for case in cases for query in case["queries"].values()}
    return {name: images / name for name in sorted(names - {None})}


def _described(records: Sequence[Record], name: str) -> dict[str, Any]:
    return {"name": name, "records": len(records), "digest": records_digest(records)}


def _data_name(arguments: argparse.Namespace) -> str:
    return "testbed, eval" if arguments.data is None else str(arguments.data.name)


def _train_name(arguments: argparse.Namespace) -> str:
    return "testbed, train" if arguments.train is None else str(arguments.train.name)


def _versions() -> dict[str, str]:
    return {
        "easyedit_dualedit": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "easyedit": easyedit_version(),
    }
