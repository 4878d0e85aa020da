"""What each command of the command line does. Each takes its parsed arguments."""

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from rich.console import Console
from rich.table import Table
from rich.text import Text

from easyedit_dualedit import __version__, testbed
from easyedit_dualedit.commands.demo_data import (
    DUALEDIT,
    DemoAdapters,
    demo_hparams,
    demo_methods,
    demo_records,
)
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ArchiveError, ConfigError
from easyedit_dualedit.experiments.ablate import ablate as run_ablation
from easyedit_dualedit.experiments.ablate import is_done, layer_pairs, to_markdown, variants
from easyedit_dualedit.experiments.ablate import to_csv as ablation_csv
from easyedit_dualedit.experiments.layer_probe import LocateConfig
from easyedit_dualedit.experiments.locate import locate as locate_layers
from easyedit_dualedit.experiments.locate import to_csv as locate_csv
from easyedit_dualedit.experiments.locate import write_hparams
from easyedit_dualedit.files import digest_of, write_json, write_text
from easyedit_dualedit.measure.evaluation import EditMaker
from easyedit_dualedit.measure.evaluation import evaluate as evaluate_records
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.measure.specificity import specificity_queries
from easyedit_dualedit.method.config import (
    PUBLISHED_THRESHOLD,
    GateConfig,
    GateKind,
    TrainingConfig,
)
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.archives import TrainedAdapters
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)
from easyedit_dualedit.plugin.values import TESTBED
from easyedit_dualedit.plugin.workbench import Workbench
from easyedit_dualedit.report.plots import is_available as plots_available
from easyedit_dualedit.report.plots import plot_ablation, plot_layers
from easyedit_dualedit.report.tables import ablation_table, locate_table, print_report
from easyedit_dualedit.settings import read_yaml
from easyedit_dualedit.testbed.world import Split
from easyedit_dualedit.train.checkpoint import records_digest
from easyedit_dualedit.train.processes import joined
from easyedit_dualedit.train.trainer import train as train_adapters

_HPARAMS = Path(__file__).parents[2] / "hparams"
_WIDTH = 150
_LOCATE_RECORDS = 100

logger = logging.getLogger(__name__)

Hparams = TypeVar("Hparams", bound=DualEditMultimodalHparams)


def demo(arguments: argparse.Namespace) -> None:
    """Edit the testbed model through EasyEdit and print the table of gates and presets."""
    # The testbed is too small to gain from a second thread, and on a busy machine threads that wait
    # for each other are twenty times slower.
    torch.set_num_threads(1)
    folder: Path = arguments.output / arguments.name
    adapters = DemoAdapters.bundled()
    if arguments.train:
        adapters = DemoAdapters(folder / "adapters-default", folder / "adapters-published")
        _train_demo("testbed", adapters.default, folder / "data", arguments.steps)
        _train_demo("testbed-published", adapters.published, folder / "data", arguments.steps)
    records = demo_records(folder / "data", "eval", arguments.count)
    workbench = Workbench(demo_hparams(adapters.default))
    methods = demo_methods(workbench, adapters)
    settings = _settings(
        records,
        methods,
        {"default": adapters.default, "published": adapters.published},
        easyedit=workbench.host.edition,
    )
    run = Run(folder, settings, fresh=arguments.fresh)
    encoder = DualEditor.load(workbench.model, workbench.processor, adapters.default).encoder
    _evaluate(run, records, encoder, methods, DUALEDIT)


def train(arguments: argparse.Namespace) -> None:
    """Train the adapters of a model and save them."""
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams, "TRAINING/DualEdit")
    records = load_records(
        arguments.data, arguments.images, template=arguments.template, limit=arguments.limit
    )
    _train(hparams, records, arguments.output, arguments.steps)


def edit(arguments: argparse.Namespace) -> None:
    """Make one edit and print the answers before and after."""
    request = Query(arguments.prompt, arguments.image, arguments.target)
    asked = [Query(prompt, arguments.ask_image or arguments.image) for prompt in arguments.ask]
    editor = editor_of(read_hparams(arguments, DualEditMultimodalHparams, "DualEdit"))
    edited = editor.edit(request.image, request.prompt, arguments.target)
    table = Table(title=Text(f"edit: {arguments.prompt!r} -> {arguments.target!r}"))
    for column in ("prompt", "before", "after", "similarity", "gate"):
        table.add_column(column)
    for query in (dataclasses.replace(request, target=None), *asked):
        batch = editor.encoder.encode([query])
        routing = edited.route(layout=batch.layout, **batch.inputs)
        table.add_row(
            Text(query.prompt),
            Text(answer_to(editor.backbone.model, editor.encoder, query)),
            Text(answer_to(edited, editor.encoder, query)),
            f"{float(routing.similarity[0]):.3f} (threshold {editor.gate.threshold:.3f})",
            "open" if bool(routing.is_open[0]) else "closed",
        )
    console().print(table)


def evaluate(arguments: argparse.Namespace) -> None:
    """Edit every record of a file, measure all of its queries and print the table."""
    folder: Path = arguments.output / arguments.name
    hparams = read_hparams(arguments, DualEditMultimodalHparams, "DualEdit")
    records, others = _evaluated(arguments, hparams, folder / "data")
    editor = editor_of(hparams)
    methods: dict[str, EditMaker] = {"unedited": lambda _record: None}
    for kind in arguments.gates or [None]:
        name = DUALEDIT if kind is None else f"{DUALEDIT}, {kind} gate"
        methods[name] = _with_gate(editor, kind)
    settings = _settings(
        records,
        methods,
        {"archive": Path(hparams.archive or "")},
        hparams=_plain(hparams.to_dict()),
        others=records_digest(others, with_pictures=True) if arguments.specificity else None,
    )
    run = Run(folder, settings, fresh=arguments.fresh)
    further = None
    if arguments.specificity:
        queries = specificity_queries(records, others, editor.encoder)
        further = {record.index: more for record, more in zip(records, queries, strict=True)}
    _evaluate(run, records, editor.encoder, methods, list(methods)[1], further)


def locate(arguments: argparse.Namespace) -> None:
    """Measure which layers the answers depend on, and propose the ones to edit."""
    folder: Path = arguments.output / arguments.name
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams, "TRAINING/DualEdit")
    config = LocateConfig(
        layers=None if arguments.layers is None else tuple(arguments.layers),
        noise=arguments.noise,
        share=arguments.share,
        draws=arguments.draws,
        rows=arguments.rows,
        seed=hparams.seed,
    )
    records = _records(arguments, hparams, folder / "data", "train")
    if arguments.data is None and arguments.limit is None:
        records = records[:_LOCATE_RECORDS]
    model, processor = load_model(hparams.model_name, **hparams.placement)
    encoder = Encoder(Backbone.of(model, BackboneConfig.read(hparams.backbone)), processor)
    config.chosen(len(encoder.backbone.layers))
    probing = {key: value for key, value in dataclasses.asdict(config).items() if key != "share"}
    settings = _settings(records, {}, {}, model=hparams.model_name, probing=probing)
    run = Run(folder, settings, fresh=arguments.fresh)
    found = locate_layers(records, encoder, config, run)
    write_json(folder / "locate.json", found)
    write_text(folder / "locate.csv", locate_csv(found))
    values = read_yaml(_hparams_path(arguments, "TRAINING/DualEdit"))
    write_hparams(folder / "train.yaml", values, found["proposal"])
    known = {item.name for item in dataclasses.fields(DualEditMultimodalHparams)}
    applied = {key: value for key, value in values.items() if key in known}
    write_hparams(folder / "apply.yaml", applied, found["proposal"])
    _plot(plot_layers, found, folder / "locate.png")
    shown = console()
    shown.print(locate_table(found))
    proposal = ", ".join(f"{name}: {layer}" for name, layer in found["proposal"].items())
    shown.print(f"proposed: {proposal}; a starting point, `ablate --pairs` compares pairs")
    shown.print(
        f"written: {folder / 'train.yaml'}, for training; beside it apply.yaml, for edit and"
        " evaluate, and locate.json, locate.csv, locate.png"
    )


def ablate(arguments: argparse.Namespace) -> None:
    """Train and measure variants of the method, and print one table."""
    folder: Path = arguments.output / arguments.name
    if (arguments.data is None) != (arguments.measured is None):
        raise ConfigError("--data needs --measured, the records to measure on, and the reverse")
    hparams = read_hparams(arguments, DualEditMultimodalTrainingHparams, "TRAINING/DualEdit")
    training = dataclasses.replace(hparams.training_config(), steps=arguments.steps)
    config = hparams.dualedit_config()
    every = variants(config, training)
    names = [variant.name for variant in every]
    wanted = names if arguments.variants is None else arguments.variants
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigError(f"no variants {unknown}; there are {names}")
    chosen = [variant for variant in every if variant.name in wanted]
    chosen += layer_pairs(config, training, arguments.pairs)
    if not chosen:
        raise ConfigError("nothing to measure; name --variants or --pairs")
    records = _records(arguments, hparams, folder / "data", "train")
    if arguments.measured is None:
        measured = demo_records(folder / "data", "eval")[: arguments.count]
    else:
        measured = load_records(
            arguments.measured,
            arguments.images,
            template=arguments.template,
            limit=arguments.count,
        )
    model, processor = load_model(hparams.model_name, **hparams.placement)
    settings = _settings(
        measured,
        {},
        {},
        model=hparams.model_name,
        trained_on=records_digest(records, with_pictures=True),
    )
    done = [
        variant for variant in every if variant not in chosen and is_done(variant, folder, settings)
    ]
    rows = run_ablation(
        chosen, model, processor, records, measured, folder, settings, fresh=arguments.fresh
    )
    rows += run_ablation(done, model, processor, records, measured, folder, settings)
    write_json(folder / "ablation.json", rows)
    write_text(folder / "ablation.csv", ablation_csv(rows))
    write_text(folder / "ablation.md", to_markdown(rows))
    _plot(plot_ablation, rows, folder / "ablation.png")
    shown = console()
    shown.print(ablation_table(rows))
    shown.print(f"written: {folder / 'ablation.json'}, .csv, .md and .png beside it")


def _plot(draw: Callable[[Any, Path], None], found: Any, path: Path) -> None:
    if plots_available():
        draw(found, path)
    else:
        logger.warning("no %s: plots need matplotlib, of the extra `plots`", path.name)


def _evaluate(
    run: Run,
    records: Sequence[Record],
    encoder: Encoder,
    methods: Mapping[str, EditMaker],
    method: str,
    further: Mapping[int, Mapping[str, Query]] | None = None,
) -> None:
    cases = evaluate_records(records, encoder, methods, run, further=further)
    metrics = run.finish(cases)
    shown = console()
    print_report(shown, metrics, cases, method=method)
    shown.print(f"written: {run.folder / METRICS_FILE}, one JSON per case beside it")


def _evaluated(
    arguments: argparse.Namespace, hparams: DualEditMultimodalHparams, folder: Path
) -> tuple[list[Record], list[Record]]:
    """Return the records to edit, and those that specificity draws from."""
    if arguments.others is not None and arguments.data is None:
        raise ConfigError(
            "--others needs --data and --images; without them the testbed has its own"
        )
    records = _records(arguments, hparams, folder, "eval")
    if arguments.data is None:
        return records, demo_records(folder, "train") if arguments.specificity else []
    if arguments.others is None:
        return records, records
    others = load_records(arguments.others, arguments.images, template=arguments.template)
    return records, others


def _records(
    arguments: argparse.Namespace, hparams: DualEditMultimodalHparams, folder: Path, split: Split
) -> list[Record]:
    """Return the records of --data, or those of the testbed."""
    if (arguments.data is None) != (arguments.images is None):
        raise ConfigError("--data and --images go together; give both, or neither for the testbed")
    if arguments.data is not None:
        return load_records(
            arguments.data, arguments.images, template=arguments.template, limit=arguments.limit
        )
    if hparams.model_name not in (TESTBED, str(testbed.model_folder())):
        raise ConfigError(
            f"the testbed's records say nothing about {hparams.model_name}; give --data and"
            " --images"
        )
    # Drawn whole and then cut, so that the same folder serves every --limit.
    return demo_records(folder, split)[: arguments.limit]


def _with_gate(editor: DualEditor, kind: GateKind | None) -> EditMaker:
    if kind is None:
        return lambda record: editor.edited(editor.read([record.request]))
    threshold = PUBLISHED_THRESHOLD if kind == "last-token" else None
    gate = editor.gate.with_config(GateConfig(kind=kind, threshold=threshold))
    if gate.kind != kind:
        raise ConfigError(f"the archive holds no trained {kind} gate; leave it out of --gates")
    return lambda record: editor.edited(editor.read([record.request]), gate=gate)


def _train_demo(name: str, target: Path, data: Path, steps: int | None) -> None:
    path = _HPARAMS / "TRAINING" / "DualEdit" / f"{name}.yaml"
    hparams = DualEditMultimodalTrainingHparams.from_hparams(path)
    _train(hparams, demo_records(data, "train"), target, steps)


def _train(
    hparams: DualEditMultimodalTrainingHparams,
    records: Sequence[Record],
    output: Path,
    steps: int | None,
) -> None:
    _require_writable(output)
    config: TrainingConfig = hparams.training_config()
    if steps is None and hparams.max_iters is None:
        steps = max(1, (hparams.max_epochs or 1) * (len(records) // config.batch_size))
    if steps is not None:
        config = dataclasses.replace(config, steps=steps)
    on_processor = str(hparams.device) == "cpu"
    with joined("gloo" if on_processor else "nccl") as processes:
        if processes.count > 1 and not on_processor:
            hparams.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        model, processor = load_model(hparams.model_name, **hparams.placement)
        torch.manual_seed(config.seed)
        editor = DualEditor(model, processor, hparams.dualedit_config())
        checkpoint = output / "training.pt"
        found = train_adapters(editor, records, config, checkpoint=checkpoint)
    if not processes.is_first:
        return  # all have the same adapters, and one saves them
    editor.save(output)
    checkpoint.unlink(missing_ok=True)
    table = Table(title=f"adapters saved in {output}; gate on training records")
    for column in ("gate", "threshold", "opens in scope", "opens out of scope"):
        table.add_column(column, justify="right")
    for kind, calibration in found.items():
        table.add_row(
            kind,
            f"{calibration.threshold:.4f}",
            f"{calibration.true_open_rate:.1%}",
            f"{calibration.false_open_rate:.1%}",
        )
    console().print(table)


def _require_writable(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ArchiveError(f"cannot write to {folder}: {existing} is no folder to write in")


def read_hparams(arguments: argparse.Namespace, kind: type[Hparams], folder: str) -> Hparams:
    path = _hparams_path(arguments, folder)
    given = {
        "model_name": arguments.model,
        "name": arguments.model,
        "tokenizer_name": arguments.model,
        "archive": arguments.archive,
        "device": arguments.device,
    }
    values = read_yaml(path) | {key: value for key, value in given.items() if value is not None}
    return kind.from_dict(values, source=str(path))


def _hparams_path(arguments: argparse.Namespace, folder: str) -> Path:
    path: Path = arguments.hparams or _HPARAMS / folder / "testbed.yaml"
    if arguments.hparams is None and not path.is_file():
        raise ConfigError(f"no hyperparameters at {path}; give a file with --hparams")
    return path


def editor_of(hparams: DualEditMultimodalHparams) -> DualEditor:
    """Return the editor that hyperparameters name.

    Raises:
        ArchiveError: if there are no adapters, or they are of another model.
        ModelLoadError: if the model cannot be loaded.
    """
    adapters = TrainedAdapters.read(hparams.archive)
    model, processor = load_model(hparams.model_name, **hparams.placement)
    return adapters.editor(model, processor, hparams)


@torch.no_grad()
def answer_to(model: Any, encoder: Encoder, query: Query) -> str:
    """Return a model's greedy answer to a question."""
    batch = encoder.encode([query], with_target=False)
    tokens = model.generate(**batch.inputs, max_new_tokens=64, do_sample=False)
    new = tokens[0, batch.inputs["input_ids"].shape[1] :]
    text: str = encoder.tokenizer.decode(new, skip_special_tokens=True)
    return text.strip()


def _settings(
    records: Sequence[Record],
    methods: Mapping[str, EditMaker],
    archives: Mapping[str, Path],
    **more: Any,
) -> dict[str, Any]:
    digests = {name: digest_of(path) for name, path in archives.items()}
    return {
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "records": len(records),
        "data": records_digest(records, with_pictures=True),
        "methods": list(methods),
        "archives": digests,
        **more,
    }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def console() -> Console:
    """Return the console that tables are printed to."""
    found = Console()
    # A pipe has no width of its own, and the table must not be cut to 80 columns.
    return found if found.is_terminal else Console(width=_WIDTH)
