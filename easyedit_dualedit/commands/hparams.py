"""Hyperparameters as a command gets them: those of a file, with what the user gave instead."""

import argparse
from pathlib import Path
from typing import Any, TypeVar

from easyedit_dualedit.method.shared_folder import adapters_folder
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.hparams_files import find_hparams, shipped_hparams
from easyedit_dualedit.settings import read_yaml
from easyedit_dualedit.testbed.emoji.places import require_model

Hparams = TypeVar("Hparams", bound=DualEditMultimodalHparams)


def read_hparams(arguments: argparse.Namespace, kind: type[Hparams]) -> Hparams:
    """Return the hyperparameters that the arguments name, the testbed's if they name none.

    Raises:
        ArchiveError: if their archive is neither a folder nor adapters of the hub.
        ConfigError: naming all that is not allowed in them, or if there are none of that name.
        ModelLoadError: if they name the emoji model and it was not put together yet.
    """
    given = {
        "model_name": arguments.model,
        "name": arguments.model,
        "tokenizer_name": arguments.model,
        "archive": arguments.archive,
        "device": arguments.device,
        "dtype": arguments.dtype,
    }
    values = values_of(arguments, kind)
    values |= {key: value for key, value in given.items() if value is not None}
    hparams = kind.from_dict(values, source=str(_file(arguments, kind)))
    require_model(hparams.model_name)
    if hparams.archive is not None:
        # Everything that reads the folder, its digest too, then sees that of the hub's cache.
        hparams.archive = str(adapters_folder(hparams.archive))
    return hparams


def values_of(
    arguments: argparse.Namespace, kind: type[DualEditMultimodalHparams]
) -> dict[str, Any]:
    """Return what the file of hyperparameters holds.

    Raises:
        ConfigError: if it cannot be read.
    """
    return read_yaml(_file(arguments, kind))


def _file(arguments: argparse.Namespace, kind: type[DualEditMultimodalHparams]) -> Path:
    if arguments.hparams is None:
        return shipped_hparams("testbed", kind.folder)
    return find_hparams(arguments.hparams, kind.folder)
