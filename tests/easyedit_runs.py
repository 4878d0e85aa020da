"""EasyEdit's editor, datasets and trainers on a workplace, for the tests that run them."""

from pathlib import Path
from typing import Any

from easyedit_fixtures import Workplace

from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import (
    DualEditMultimodalHparams,
    DualEditMultimodalTrainingHparams,
)


def editor_of(workplace: Workplace, archive: Any = None, **changes: Any) -> Any:
    """Return EasyEdit's editor with trained adapters."""
    hparams = DualEditMultimodalHparams.from_dict(
        workplace.settings(archive=str(archive or workplace.adapters), **changes)
    )
    return find_host().package.MultimodalEditor.from_hparams(hparams)


def dataset_of(
    workplace: Workplace, hparams: Any, name: str = "VQADataset", size: int | None = None
) -> Any:
    """Return a dataset of EasyEdit's."""
    return getattr(find_host().package, name)(str(workplace.records), size=size, config=hparams)


def trainer_of(
    workplace: Workplace,
    results: Path,
    trainer: str,
    data: str = "VQADataset",
    size: int | None = None,
    **changes: Any,
) -> Any:
    """Return a trainer of EasyEdit's before its run."""
    hparams = DualEditMultimodalTrainingHparams.from_dict(
        workplace.training_settings(results, **changes)
    )
    records = dataset_of(workplace, hparams, data, size)
    return getattr(find_host().package, trainer)(hparams, records, records)


def trained(
    workplace: Workplace, results: Path, trainer: str, data: str = "VQADataset", **changes: Any
) -> Any:
    """Return a trainer of EasyEdit's after its run."""
    made = trainer_of(workplace, results, trainer, data, **changes)
    made.run()
    return made


def accuracies(metrics: list[dict[str, Any]], phase: str) -> list[float]:
    """Return the accuracy on the request of each case."""
    return [float(case[phase]["rewrite_acc"]) for case in metrics]
