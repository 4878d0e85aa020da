"""What each part of the method is worth: one variant trained and measured after the other.

Every variant has the base's steps, data and seed, and differs from it in what its name says. A gate
depends on the text layer alone, never on adapters, so variants of one text layer share one.
"""

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.measure.evaluation import EditMaker, evaluate
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.run import METRICS_FILE, Run
from easyedit_dualedit.measure.target_split import TargetSplit
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE
from easyedit_dualedit.method.config import DualEditConfig, GateConfig, GateKind, SignalPositions
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_trainer import train_gate
from easyedit_dualedit.train.trainer import train

COLUMNS = (*METRICS, AVERAGE)
"""Metrics of the table."""

PUBLISHED = "published architecture"
"""The adapters of the preset `published`, trained as the base is."""

_ADAPTERS = "adapters"
_CHECKPOINT = "training.pt"

_ALL_GATES: tuple[GateKind, ...] = ("open", "cosine", "centred", "learned", "last-token")
_GATES: tuple[GateKind, ...] = ("open", "learned")


@dataclass(frozen=True)
class Variant:
    """One row, or several that differ in the gate alone."""

    name: str
    config: DualEditConfig
    training: TrainingConfig
    gates: tuple[GateKind, ...] = _GATES
    """Gates that it is measured with."""

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


_PAIR = re.compile(r"layers-(\d+)-and-(\d+)")


def variants(config: DualEditConfig, training: TrainingConfig) -> list[Variant]:
    """Return the base, one variant for each part that can be left out or exchanged, and one with
    all that the published architecture has otherwise."""
    swapped = replace(config, text_layer=config.vision_layer, vision_layer=config.text_layer)
    other: SignalPositions = "prompt+target" if config.signal == "target" else "target"
    every = [
        Variant("both adapters", config, training, _ALL_GATES),
        Variant("vision adapter only", replace(config, modalities=("vision",)), training),
        Variant("text adapter only", replace(config, modalities=("text",)), training),
        Variant(f"signal: {other}", replace(config, signal=other), training),
        Variant("signal: all", replace(config, signal="all"), training),
        Variant(
            "locality weights 1",
            config,
            replace(training, image_locality_weight=1.0, text_locality_weight=1.0),
        ),
        Variant("last prompt token out", replace(config, last_prompt_token=False), training),
        Variant("word path out", replace(config, word_path=False), training),
        Variant("answer tokens out", replace(config, answer_tokens=False), training),
    ]
    published = replace(
        config, signal="all", last_prompt_token=False, word_path=False, answer_tokens=False
    )
    if published != config:
        every.append(Variant(PUBLISHED, published, training, (*_GATES, "last-token")))
    if swapped.text_layer != config.text_layer:
        every.insert(3, Variant("layers swapped", swapped, training))
    return every


def layer_pairs(
    config: DualEditConfig, training: TrainingConfig, pairs: Sequence[tuple[int, int]]
) -> list[Variant]:
    """Return a variant for each pair of text layer and vision layer."""
    return [
        Variant(
            f"layers {text} and {vision}",
            replace(config, text_layer=text, vision_layer=vision),
            training,
        )
        for text, vision in pairs
    ]


def layer_pairs_in(folder: Path, config: DualEditConfig, training: TrainingConfig) -> list[Variant]:
    """Return a variant for each pair of layers that has a folder in a folder, by their layers."""
    found = (_PAIR.fullmatch(path.name) for path in folder.glob("layers-*"))
    pairs = sorted((int(match[1]), int(match[2])) for match in found if match)
    return layer_pairs(config, training, pairs)


def ablate(
    chosen: Sequence[Variant],
    model: Any,
    processor: Any,
    records: Sequence[Record],
    measured: Sequence[Record],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    split: TargetSplit | str | None = None,
    fresh: bool = False,
    shown: Mapping[int, str] | None = None,
    pictures: str | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train and measure variants; return one row for each variant and gate.

    A variant whose adapters are in the folder is not trained again, one that was stopped continues.

    Args:
        chosen: variants, with distinct names.
        model: the unedited model.
        processor: its processor.
        records: to train on.
        measured: to measure on.
        folder: each variant has a folder in it.
        settings: plain values that decide the results, besides the variant itself.
        split: which targets were seen in the training, or why that is not known.
        fresh: train and measure anew what is in the folder.
        shown: digest of the pictures of each record measured, by its index; see `Run`.
        pictures: digest of those that are trained on.
        progress: whether to show bars.

    Returns:
        `variant`, `gate`, `text_layer`, `vision_layer`, the `protocols` of the metrics and, if
        there is a split, `by_target` (see `TargetSplit.means`).

    Raises:
        ConfigError: if two variants have one name, or a folder holds other settings.
        LayerError: if a layer is not in the model.
    """
    names = [variant.folder for variant in chosen]
    if len(set(names)) < len(names):
        raise ConfigError(f"variants {sorted(names)} share a folder; name each once")
    # Before anything is trained: all layers are there, no folder is in another run's use.
    for variant in chosen:
        DualEditor(model, processor, variant.config)
    runs = {
        variant.name: Run(
            folder / variant.folder, _settings_of(variant, settings), fresh=fresh, shown=shown
        )
        for variant in chosen
    }
    if fresh:
        for run in runs.values():
            shutil.rmtree(run.folder / _ADAPTERS, ignore_errors=True)
            (run.folder / _CHECKPOINT).unlink(missing_ok=True)
    gates: dict[int, Mapping[str, Tensor]] = {}
    rows = []
    for variant in chosen:
        run = runs[variant.name]
        editor = _trained(
            variant,
            model,
            processor,
            records,
            run.folder,
            gates,
            pictures=pictures,
            progress=progress,
        )
        makers: dict[str, EditMaker] = {kind: _with_gate(editor, kind) for kind in variant.gates}
        cases = evaluate(measured, editor.encoder, makers, run, progress=progress)
        metrics = run.finish(cases, split)["methods"]
        rows += [
            {
                "variant": variant.name,
                "gate": kind,
                "text_layer": variant.config.text_layer,
                "vision_layer": variant.config.vision_layer,
                **metrics[kind],
            }
            for kind in variant.gates
        ]
    return rows


def is_done(variant: Variant, folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a variant was measured in a folder to its end, under these settings."""
    own = folder / variant.folder
    return (own / METRICS_FILE).is_file() and Run.holds(own, _settings_of(variant, settings))


def _settings_of(variant: Variant, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **settings,
        "config": variant.config.to_dict(),
        "training": dataclasses.asdict(variant.training),
        "gates": list(variant.gates),
    }


def _trained(
    variant: Variant,
    model: Any,
    processor: Any,
    records: Sequence[Record],
    folder: Path,
    gates: dict[int, Mapping[str, Tensor]],
    *,
    pictures: str | None,
    progress: bool,
) -> DualEditor:
    """Return the variant's editor, trained here or earlier; `gates` gains that of its layer."""
    archive = folder / _ADAPTERS
    layer = variant.config.text_layer
    if all((archive / name).is_file() for name in (WEIGHTS_FILE, CONFIG_FILE)):
        editor = DualEditor.load(model, processor, archive)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(variant.training.seed)
            editor = DualEditor(model, processor, variant.config)
        checkpoint = folder / _CHECKPOINT
        alone = replace(variant.training, gate_steps=0)
        train(editor, records, alone, checkpoint=checkpoint, pictures=pictures, progress=progress)
        if layer in gates:
            editor.gate.load_state_dict(dict(gates[layer]))
        elif variant.training.gate_steps:
            train_gate(editor, records, variant.training, progress=progress)
        editor.save(archive)
        checkpoint.unlink(missing_ok=True)
    gates.setdefault(layer, editor.gate.state_dict())
    return editor


def _with_gate(editor: DualEditor, kind: GateKind) -> EditMaker:
    gate = editor.gate.with_config(GateConfig(kind=kind))
    return lambda record: editor.edited(editor.read([record.request]), gate=gate)
