"""A run of the benchmark on disk: a folder for each method, with its cases and what it cost."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from easyedit_dualedit.files import read_json, write_json
from easyedit_dualedit.measure.run import CASES_FOLDER, SETTINGS_FILE, clear_queries
from easyedit_dualedit.storage.folder_lock import locked

UNEDITED = "unedited"
"""Name of the model without an edit, beside those of the methods."""

METHODS_FOLDER = "methods"
TRAINED_FOLDER = "trained"
TUNING_FOLDER = "tuning"
MAKING_FILE = "making.json"
FAILURE_FILE = "failed.json"


def slug(name: str) -> str:
    """Return a method's name as a folder and as an argument."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def method_folder(folder: Path, name: str) -> Path:
    """Return where a run keeps the cases of a method."""
    return folder / METHODS_FOLDER / slug(name)


def clear_measured(
    folder: Path, shard: tuple[int, int] = (0, 1), *, whole: bool | None = None
) -> None:
    """Remove what was measured in a run, so that it is measured anew.

    What was trained stays: it says by itself on what, and how.

    Args:
        folder: of the run; one that holds none is left alone.
        shard: which of how many parts of the records; the cases of others stay.
        whole: whether no other part is at work yet, so that everything goes; None says so of a
            shard that has all records.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return
    place, parts = shard
    if parts == 1 if whole is None else whole:
        clear_queries(folder)
        for name in (METHODS_FOLDER, TUNING_FOLDER):
            shutil.rmtree(folder / name, ignore_errors=True)
    for path in (folder / METHODS_FOLDER).glob(f"*/{CASES_FOLDER}/*.json"):
        if path.stem.isdecimal() and int(path.stem) % parts == place:
            path.unlink(missing_ok=True)


def failure(folder: Path, name: str) -> str | None:
    """Return why a method failed in a run, or None."""
    stored = read_json(method_folder(folder, name) / FAILURE_FILE)
    return None if stored is None else str(stored["error"])


def cases_of(folder: Path, name: str, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return the cases of a method that a run holds, in the order of `indices`."""
    paths = (method_folder(folder, name) / CASES_FOLDER / f"{i:05d}.json" for i in indices)
    return [case for case in map(read_json, paths) if case is not None]


def costs_of(folder: Path, name: str, indices: Sequence[int]) -> dict[str, float | int | None]:
    """Return what a method costs, beside what the unedited model does.

    Returns:
        `seconds_per_edit` (mean), `forward_overhead` (median over cases of the edited
        forward's time over the unedited one's right before it),
        `bytes_per_edit` (mean), `trained_parameters`, `making_seconds` (loading, and training if
        there was any) and `peak_memory_bytes` while it edits and is asked, beyond what the process
        held before the method was made; None where unknown.
    """
    cases = cases_of(folder, name, indices)
    pairs = [case["seconds"].get("pair") or () for case in cases]
    ratios = [pair[1] / pair[0] for pair in pairs if pair]
    making = read_json(method_folder(folder, name) / MAKING_FILE) or {}
    return {
        "seconds_per_edit": fmean(case["seconds"]["edit"] for case in cases) if cases else None,
        "forward_overhead": median(ratios) if ratios else (1.0 if name == UNEDITED else None),
        "bytes_per_edit": round(fmean(case["stored_bytes"] for case in cases)) if cases else None,
        **{
            key: making.get(key)
            for key in ("trained_parameters", "making_seconds", "peak_memory_bytes")
        },
    }


def note_making(folder: Path, made: Mapping[str, Any]) -> None:
    """Write what it took to make a method, into the method's folder.

    Of a run in several parts, the part that trained took longest; it is the one to tell. What a
    part did not measure (None) hides nothing that another did.
    """
    with locked(folder, name=f".{MAKING_FILE}.lock"):
        earlier = read_json(folder / MAKING_FILE) or {}
        known = {
            key: [each for each in (value, earlier.get(key)) if each is not None]
            for key, value in made.items()
        }
        longest = {key: max(values, default=None) for key, values in known.items()}
        write_json(folder / MAKING_FILE, longest)
