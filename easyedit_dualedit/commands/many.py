"""The command `many`: measures many edits in one model, and writes a report with plots."""

import argparse
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from easyedit_dualedit import __version__
from easyedit_dualedit.commands.demo_data import demo_records, is_testbed
from easyedit_dualedit.commands.shared import console, editor_of, read_hparams
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.benchmark_folder import slug
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.experiments.gate_rates import routing_costs, routing_rates
from easyedit_dualedit.experiments.many_edits import (
    FEWEST_ASKED,
    Group,
    ManyMethod,
    SharedMemory,
    Unedited,
    groups_of,
    measure_group,
    point_of,
    untouched,
)
from easyedit_dualedit.files import digest_of, read_json, write_json, write_text
from easyedit_dualedit.measure.contender import Bench
from easyedit_dualedit.measure.run import CASES_FOLDER, METRICS_FILE, Run
from easyedit_dualedit.method.edit_memory import DEFAULT_PRECISION
from easyedit_dualedit.method.packing import PRECISIONS
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.models import load_processor
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders, easyedit_version
from easyedit_dualedit.report.many_edits import report_of
from easyedit_dualedit.report.plots import is_available as has_plots
from easyedit_dualedit.report.plots import plot_many, plot_sizes
from easyedit_dualedit.train.checkpoint import records_digest

SEQUENTIAL = ("GRACE", "WISE", "LoRA")
"""EasyEdit's methods that can go on editing an edited model."""

SIZES_AT = 100
"""Edits, at most, that quality against size is measured with."""

_GATE_FILE = "gate.json"

ROUTED_COUNTS = (1, 100, 1000, 10_000)
"""Numbers of edits whose routing is timed, as far as there are records for them."""


def many(arguments: argparse.Namespace) -> None:
    """Measure many edits, method by method, and write the report."""
    folder: Path = arguments.output / arguments.name
    hparams = read_hparams(arguments, DualEditMultimodalHparams, "DualEdit")
    counts = sorted(set(arguments.counts))
    records = _records(arguments, hparams.model_name, folder / "data", counts[-1])
    if len(records) < counts[-1]:
        raise ConfigError(
            f"--counts {counts[-1]} needs as many records, there are {len(records)}; lower it"
        )
    if is_testbed(hparams.model_name):
        torch.set_num_threads(1)  # it is too small to gain from a second one
    editor = editor_of(hparams)
    common = {
        "version": __version__,
        "model": hparams.model_name,
        "archive": digest_of(Path(str(hparams.archive))) if hparams.archive else None,
        "data": records_digest(records, with_pictures=True),
        "records": len(records),
        "precision": DEFAULT_PRECISION,
        "easyedit": easyedit_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    Run(folder, common, fresh=arguments.fresh)
    # Below the folder that `fresh` removes, so that nothing of an earlier run is taken for new.
    cases = folder / CASES_FOLDER
    groups = groups_of(records, counts)
    sized = groups_of(records, [min(SIZES_AT, counts[-1])])
    methods = _methods(hparams, folder, arguments.methods)
    unedited = Unedited(editor.backbone.model, editor.encoder, Run(cases / "unedited", {}))
    for name, make in methods.items():
        _measure(name, make(), groups, unedited, editor.encoder, cases)
    rows = {f"{DUALEDIT}, {each}": each for each in PRECISIONS if each != DEFAULT_PRECISION}
    for name, precision in rows.items():
        method = SharedMemory(editor, precision)
        _measure(name, method, sized, unedited, editor.encoder, cases)
    found = read_json(folder / CASES_FOLDER / _GATE_FILE) or {}
    if "rates" not in found:
        found["rates"] = routing_rates(editor, records, [n for n in counts if n <= len(records)])
        write_json(cases / _GATE_FILE, found)
    if "untouched" not in found:
        found["untouched"] = dict(untouched(editor, records[: counts[-1]], DEFAULT_PRECISION))
        write_json(cases / _GATE_FILE, found)
    if "costs" not in found:
        routed = _routed(arguments, records, folder / "routed")
        among = [count for count in ROUTED_COUNTS if count <= len(routed)]
        found["costs"] = routing_costs(editor, routed, among)
        write_json(cases / _GATE_FILE, found)
    _finish(arguments, folder, groups, sized, {**common, "machine": _machine()})


def _finish(
    arguments: argparse.Namespace,
    folder: Path,
    groups: Sequence[Group],
    sized: Sequence[Group],
    settings: Mapping[str, Any],
) -> None:
    points: dict[str, list[dict[str, Any]]] = {}
    for name in (DUALEDIT, *SEQUENTIAL):
        for count in sorted({group.count for group in groups}):
            point = point_of(
                folder / CASES_FOLDER / slug(name), [g for g in groups if g.count == count]
            )
            if point is not None:
                points.setdefault(name, []).append(point)
    sizes = []
    for precision in PRECISIONS:
        name = DUALEDIT if precision == DEFAULT_PRECISION else f"{DUALEDIT}, {precision}"
        point = point_of(folder / CASES_FOLDER / slug(name), sized)
        if point is not None:
            sizes.append({"precision": precision, **point})
    metrics = {
        "settings": dict(settings),
        "points": points,
        "sizes": sizes,
        **(read_json(folder / CASES_FOLDER / _GATE_FILE) or {}),
        "default_precision": DEFAULT_PRECISION,
    }
    write_json(folder / METRICS_FILE, metrics)
    targets = [folder / "many_edits.md"]
    targets += [] if arguments.report is None else [arguments.report]
    for target in targets:
        write_text(target, report_of(metrics, plots=has_plots()))
        if has_plots():
            plot_many(points, target.with_name("many_edits.png"))
            plot_sizes(sizes, target.with_name("many_edits_sizes.png"))
    shown = console()
    for name, found in points.items():
        for point in found:
            shown.print(f"{name}: {point['edits']} edits, average {point['average']:.1f}")
    shown.print(f"written: {targets[-1]}, and {folder / METRICS_FILE}")


def _measure(
    name: str,
    method: ManyMethod,
    groups: Sequence[Group],
    unedited: Unedited,
    encoder: Any,
    folder: Path,
) -> None:
    total = 2 * sum(len(group.records) for group in groups)
    with tqdm(total=total, desc=name, unit="step") as bar:
        for group in groups:
            run = Run(folder / slug(name) / group.name, {})
            measure_group(method, group, unedited, encoder, run, bar=bar)


def _methods(
    hparams: DualEditMultimodalHparams, folder: Path, wanted: Sequence[str] | None
) -> dict[str, Callable[[], Any]]:
    """Return how to make each method that was asked for."""
    known = {slug(name): name for name in (DUALEDIT, *SEQUENTIAL)}
    chosen = list(known) if wanted is None else [slug(name) for name in wanted]
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise ConfigError(f"no methods {unknown}; there are {sorted(known)}")

    def load() -> tuple[Any, Any]:
        model, _ = load_model(hparams.model_name, **hparams.placement)
        return model, load_processor(hparams.model_name)

    made: dict[str, Callable[[], Any]] = {}
    if slug(DUALEDIT) in chosen:
        made[DUALEDIT] = lambda: SharedMemory(editor_of(hparams), DEFAULT_PRECISION)
    if set(chosen) - {slug(DUALEDIT)}:
        rows = {contender.name: contender for contender in easyedit_contenders()}
        for name in SEQUENTIAL:
            if slug(name) in chosen and name in rows:
                bench = Bench(hparams.model_name, load, hparams.device, folder / "trained")
                made[name] = partial(rows[name].make, bench)
            elif slug(name) in chosen and wanted is not None:
                raise ConfigError(f"the EasyEdit installed here has no {name}; leave it out")
    return made


def _records(arguments: argparse.Namespace, model: str, folder: Path, count: int) -> list[Record]:
    if arguments.data is None:
        if not is_testbed(model):
            raise ConfigError(
                f"the testbed's records say nothing about {model}; give --data and --images"
            )
        return demo_records(folder, "eval", max(count, FEWEST_ASKED))
    if arguments.images is None:
        raise ConfigError("--data needs --images")
    limit = arguments.limit
    return load_records(arguments.data, arguments.images, template=arguments.template, limit=limit)


def _routed(
    arguments: argparse.Namespace, records: Sequence[Record], folder: Path
) -> Sequence[Record]:
    """Return the records whose edits are routed among: of the testbed, more than are edited."""
    if arguments.data is not None:
        return records
    return demo_records(folder, "train", ROUTED_COUNTS[-1])


def _machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} thread"
