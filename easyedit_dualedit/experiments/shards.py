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
    UNEDITED,
    method_folder,
)
from easyedit_dualedit.files import read_json, write_json
from easyedit_dualedit.measure.run import CASES_FOLDER, PICTURES, SETTINGS_FILE, Run


def merge(folders: Sequence[Path], output: Path) -> None:
    """Put the cases of several folders of one run into one folder.

    It can be done again with the same folders, or with one in which a method was mended: cases that
    are there already are left as they are, and a method counts as failed only as long as one of the
    folders says so and cases are missing.

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
                # `Run.case` leaves out what the source's file holds, the digest of its pictures.
                there = run.case(index) is not None
                present = read_json(target / CASES_FOLDER / path.name) if there else None
                if present is not None and _differ(present, case):
                    raise DataError(
                        f"{path} differs from the case of the same record in {target}; the two were"
                        " made on different machines or data: merge only one of them"
                    )
                if present is None:
                    run.store(index, case)
            if (source / MAKING_FILE).is_file() and not (target / MAKING_FILE).is_file():
                shutil.copyfile(source / MAKING_FILE, target / MAKING_FILE)
    _note_failures(folders, output)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two cases of a record differ in anything but time.

    Digests of pictures are compared where both have them: an older version wrote none.
    """
    ignored = {"seconds"} if PICTURES in one and PICTURES in other else {"seconds", PICTURES}
    keys = (one.keys() | other.keys()) - ignored
    absent = object()
    return any(one.get(key, absent) != other.get(key, absent) for key in keys)


def _note_failures(folders: Sequence[Path], output: Path) -> None:
    """Write why methods of the folders failed that lack cases; remove what no longer holds."""
    asked = _names_of_cases(method_folder(output, UNEDITED))
    for target in sorted((output / METHODS_FOLDER).glob("*")):
        sources = [folder / METHODS_FOLDER / target.name for folder in folders]
        if not any(source.exists() for source in sources):
            continue
        found = (read_json(source / FAILURE_FILE) for source in sources)
        failures = [failure for failure in found if failure is not None]
        is_whole = bool(asked) and asked <= _names_of_cases(target)
        if failures and not is_whole:
            write_json(target / FAILURE_FILE, failures[0])
        else:
            (target / FAILURE_FILE).unlink(missing_ok=True)


def _names_of_cases(folder: Path) -> set[str]:
    return {path.name for path in (folder / CASES_FOLDER).glob("*.json")}
