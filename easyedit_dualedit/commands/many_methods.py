"""The methods that `many` measures, and the measurement of one of them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from easyedit_dualedit.commands.editors import editor_of
from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.benchmark_folder import slug
from easyedit_dualedit.experiments.dualedit_rows import DUALEDIT
from easyedit_dualedit.experiments.many_edits import (
    Group,
    ManyMethod,
    SharedMemory,
    UneditedAnswers,
    measure_group,
    steps_of,
)
from easyedit_dualedit.measure.contender import Bench
from easyedit_dualedit.measure.run import Run
from easyedit_dualedit.method.edit_memory import DEFAULT_PRECISION
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.packing import PRECISIONS
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.models import load_processor
from easyedit_dualedit.plugin.rows.roster import easyedit_contenders
from easyedit_dualedit.processes import Processes

SEQUENTIAL = ("GRACE", "WISE", "LoRA")
"""EasyEdit's methods that can go on editing an edited model."""


def methods_of(
    hparams: DualEditMultimodalHparams, folder: Path, wanted: Sequence[str] | None
) -> dict[str, Callable[[], Any]]:
    """Return how to make each method that was asked for; None asks for all there are.

    Raises:
        ConfigError: if a method is not known, or not part of the EasyEdit installed here.
    """
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


def sized_methods(editor: DualEditor) -> dict[str, ManyMethod]:
    """Return DualEdit at every precision, by the name of its row.

    The default is one of them: it may be measured at other numbers of edits alone.
    """
    return {sized_name(precision): SharedMemory(editor, precision) for precision in PRECISIONS}


def sized_name(precision: str) -> str:
    """Return the name of DualEdit's row at a precision of the stored edits."""
    return DUALEDIT if precision == DEFAULT_PRECISION else f"{DUALEDIT}, {precision}"


def measure(
    name: str,
    method: ManyMethod,
    groups: Sequence[Group],
    unedited: UneditedAnswers,
    encoder: Any,
    folder: Path,
    pictures: PictureFiles,
    processes: Processes,
) -> None:
    """Measure a method on groups of edits; what is stored in the folder is not measured again.

    A case depends on all edits of its group, and so on all their pictures. Each process makes all
    edits of a group and asks about its share of them.
    """
    total = sum(map(steps_of, groups))
    with tqdm(total=total, desc=name, unit="step", disable=not processes.is_first) as bar:
        for group in groups:
            shown = pictures.shown_by(group.records, together=True)
            run = Run(folder / slug(name) / group.name, {}, shown=shown)
            measure_group(method, group, unedited, encoder, run, bar=bar, processes=processes)
