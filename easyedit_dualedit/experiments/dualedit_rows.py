"""DualEdit as a row of the benchmark: with each of its gates, as published, and in part."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.files import digest_of
from easyedit_dualedit.measure.contender import Bench, Contender, Edited, Method
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE, Archive
from easyedit_dualedit.method.config import PUBLISHED_THRESHOLD, DualEditConfig, GateConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.train.checkpoint import records_digest
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.trainer import train

DUALEDIT = "DualEdit"
PUBLISHED = "DualEdit, published preset"
VISION_ONLY = "VisEdit's place"

GATES: Mapping[str, GateConfig] = {
    "DualEdit, cosine gate": GateConfig(kind="cosine"),
    "DualEdit, centred gate": GateConfig(kind="centred"),
    "DualEdit, last-token gate": GateConfig(kind="last-token", threshold=PUBLISHED_THRESHOLD),
    "DualEdit, no gate": GateConfig(kind="open"),
}
"""Rows that share DualEdit's adapters and decide otherwise."""

_OWN_FOLDER = "dualedit"
_FOLDERS = {PUBLISHED: "published", VISION_ONLY: "vision-only"}
_SETTINGS = ("archive", "steps")


class AdaptedEditor:
    """Makes edits with trained adapters; the model itself is never changed."""

    def __init__(self, editor: DualEditor, gate: Gate | None = None):
        """Keep an editor, and the gate that decides instead of its own."""
        self._editor = editor
        self._gate = editor.gate if gate is None else gate
        _ = self._gate.threshold  # raises now rather than at the first question
        adapters = sum(value.numel() for value in editor.adapters.parameters())
        learned = sum(value.numel() for value in editor.gate.parameters())
        self.trained_parameters = adapters + (learned if self._gate.kind == "learned" else 0)

    @contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        """Read the edit of a record, and let it be asked."""
        with torch.no_grad():
            signals = self._editor.read([record.request])
            edited = self._editor.edited(signals, gate=self._gate)
        yield Edited.by_dualedit(edited, sum(map(_stored_bytes, signals)))


@dataclass(frozen=True)
class Recipe:
    """What adapters are trained to, and where they lie if they have been."""

    config: DualEditConfig
    training: TrainingConfig
    archive: Path | None = None


def dualedit_contenders(own: Recipe, published: Recipe) -> list[Contender]:
    """Return DualEdit with its own gate and with others, as published, and its vision half alone.

    Args:
        own: of DualEdit.
        published: of the published preset.
    """
    vision = replace(own.config, modalities=("vision",), gate=GateConfig(kind="open"))
    alone = Recipe(vision, own.training)
    return [
        Contender(
            DUALEDIT,
            partial(_make, DUALEDIT, own, None),
            partial(_with_settings, DUALEDIT, own),
            shares=_OWN_FOLDER,
            identity=_identity(own),
        ),
        *(
            Contender(
                name,
                partial(_make, name, own, gate),
                partial(_with_settings, name, own),
                reads_label=gate.reads_label,
                shares=_OWN_FOLDER,
                identity={**_identity(own), "gate": asdict(gate)},
            )
            for name, gate in GATES.items()
        ),
        Contender(
            PUBLISHED,
            partial(_make, PUBLISHED, published, None),
            partial(_with_settings, PUBLISHED, published),
            reads_label=published.config.gate.reads_label,
            identity=_identity(published),
            remarks=(
                "What the published code does, made to run: signal over all positions, last prompt"
                " token left out, image locality trained only, last-token gate at 0.8.",
            ),
        ),
        Contender(
            VISION_ONLY,
            partial(_make, VISION_ONLY, alone, None),
            partial(_with_settings, VISION_ONLY, alone),
            identity=_identity(alone),
            remarks=(
                "A vision adapter alone and no gate, which is what VisEdit adds; trained as"
                " DualEdit is, without VisEdit's influence mapper.",
            ),
        ),
    ]


def _identity(recipe: Recipe) -> dict[str, Any]:
    if recipe.archive is not None:
        return {"archive": digest_of(recipe.archive)}
    return {"config": recipe.config.to_dict(), "training": asdict(recipe.training)}


def _with_settings(name: str, recipe: Recipe, _model: str, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the archive and the steps that are given."""
    unknown = sorted(set(settings) - set(_SETTINGS))
    if unknown:
        raise ConfigError(f"{name} has no settings {unknown}; there are {list(_SETTINGS)}")
    given = settings.get("archive")
    archive = recipe.archive if given is None else Path(str(given))
    if given is not None and archive is not None and not archive.exists():
        raise ConfigError(f"archive = {given!r} of {name} is not there; give a folder of adapters")
    steps = settings.get("steps", recipe.training.steps)
    if "steps" in settings and archive is not None:
        raise ConfigError(
            f"steps = {steps!r} of {name}: its adapters are there (archive = {str(archive)!r}), so"
            " that none are trained; leave it out"
        )
    return replace(recipe, archive=archive, training=replace(recipe.training, steps=steps))


def _make(name: str, recipe: Recipe, gate: GateConfig | None, bench: Bench) -> Method:
    recipe = _with_settings(name, recipe, bench.model, bench.settings)
    model, processor = bench.load()
    archive = recipe.archive
    if archive is None:
        config = replace(
            recipe.config, backbone=bench.backbone_of(model, recipe.config.backbone).given
        )
        recipe = replace(recipe, config=config)
        archive = _trained(bench, model, processor, recipe, _FOLDERS.get(name, _OWN_FOLDER))
    editor = _loaded(bench, model, processor, archive)
    return AdaptedEditor(editor, None if gate is None else editor.gate.with_config(gate))


def _loaded(bench: Bench, model: Any, processor: Any, folder: Path) -> DualEditor:
    archive = Archive.load(folder)
    backbone = bench.backbone_of(model, archive.config.backbone)
    archive.require_model(backbone, folder)
    editor = DualEditor(model, processor, replace(archive.config, backbone=backbone.given))
    archive.fill(editor, folder)
    return editor


def _trained(bench: Bench, model: Any, processor: Any, recipe: Recipe, name: str) -> Path:
    """Return the folder of adapters, trained now unless they are there, and trained just so."""
    if not bench.training:
        raise ConfigError(
            "there are no trained adapters and no records to train on; give an archive, or --train"
        )
    folder = bench.folder / name
    settings = {
        "config": recipe.config.to_dict(),
        "training": asdict(recipe.training),
        "model": bench.model,
        "dtype": str(model.dtype),
        "records": records_digest(bench.training, with_pictures=True),
    }
    if folder.exists() and not Run.holds(folder, settings):
        # Trained otherwise, in a run that --fresh has replaced since.
        shutil.rmtree(folder)
    Run(folder, settings)
    archive, checkpoint = folder / "adapters", folder / "training.pt"
    if not all((archive / file).is_file() for file in (WEIGHTS_FILE, CONFIG_FILE)):
        torch.manual_seed(recipe.training.seed)
        editor = DualEditor(model, processor, recipe.config)
        records = bench.training
        train(editor, records, recipe.training, checkpoint=checkpoint, progress=bench.progress)
        editor.save(archive)
        checkpoint.unlink(missing_ok=True)
    return archive


def _stored_bytes(signal: EditSignal) -> int:
    tensors = (*signal.states.values(), signal.gate_state, signal.vision_state)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
