"""Shards of one run of the benchmark, put together."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.experiments.benchmark_folder import (
    FAILURE_FILE,
    MAKING_FILE,
    METHODS_FOLDER,
)
from easyedit_dualedit.files import read_json
from easyedit_dualedit.measure.run import CASES_FOLDER, SETTINGS_FILE, Run


def merge(folders: Sequence[Path], output: Path) -> None:
    """Put the cases of several folders of one run into one folder.

    Args:
        folders: shards of one run, or parts of its methods.
        output: where to; may be one of them.

    Raises:
        ConfigError: if a folder holds no run, or they were made with different settings.
        DataError: if two of them have different cases of one record.
    """
    for folder in folders:
        missing = [name for name in (SETTINGS_FILE, METHODS_FOLDER) if not (folder / name).exists()]
        if missing:
            raise ConfigError(
                f"{folder} holds no run of the benchmark: there is no {missing[0]}; give the"
                " folders that benchmark wrote"
            )
    for folder in folders:
        Run(output, read_json(folder / SETTINGS_FILE) or {})
        for source in sorted((folder / METHODS_FOLDER).iterdir()):
            target = output / METHODS_FOLDER / source.name
            is_begun = (source / SETTINGS_FILE).is_file() or (source / CASES_FOLDER).exists()
            if source.resolve() == target.resolve() or not is_begun:
                continue
            run = Run(target, read_json(source / SETTINGS_FILE) or {})
            for path in sorted((source / CASES_FOLDER).glob("*.json")):
                case, index = read_json(path) or {}, int(path.stem)
                present = run.case(index)
                if present is not None and _timeless(present) != _timeless(case):
                    raise DataError(
                        f"{path} differs from the case of the same record in {target}; the two were"
                        " made on different machines or data: merge only one of them"
                    )
                if present is None:
                    run.store(index, case)
            for name in (MAKING_FILE, FAILURE_FILE):
                if (source / name).is_file() and not (target / name).is_file():
                    shutil.copyfile(source / name, target / name)


def _timeless(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in case.items() if key != "seconds"}
