"""Edit records about the emoji model's world, in MMEdit's format, with pictures, as files.

Beside MMEdit's eleven fields a record has `port_new`, as VLKEB's files have it, `family` (what is
asked) and `binding` (whether an edit changed a picture's answer or the thing itself).
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from easyedit_dualedit.data.record_pictures import PICTURES
from easyedit_dualedit.errors import DataError, PartsError
from easyedit_dualedit.testbed.emoji.cases import Case, draw_cases
from easyedit_dualedit.testbed.emoji.drawing import Drawings
from easyedit_dualedit.testbed.emoji.general_questions import (
    questions_in,
    shipped_questions,
)
from easyedit_dualedit.testbed.emoji.parts import default_folder, open_parts
from easyedit_dualedit.testbed.emoji.places import GET_COMMAND
from easyedit_dualedit.testbed.emoji.things import Split, Thing, held_out

logger = logging.getLogger(__name__)

DEFAULT_COUNTS: dict[Split, int] = {"train": 4000, "eval": 500}
LARGEST_COUNT = 20_000

_DECIDING = (
    "capitals.json",
    "cases.py",
    "drawing.py",
    "one_hop.py",
    "records.py",
    "scenes.py",
    "things.py",
    "wordings.py",
)
"""Files of this folder by which the same seed gives the same bytes."""


def write_records(
    folder: Path,
    split: Split,
    count: int | None = None,
    *,
    seed: int = 0,
    questions: Path | None = None,
    name: str | None = None,
    world: tuple[Sequence[Thing], Drawings] | None = None,
) -> Path:
    """Write records and their pictures; return the path of the JSON file.

    The file is ``folder/<name>.json``, and the pictures it names lie below ``folder/images``. The
    same arguments give the same bytes; where they are there already, nothing is done. The two
    splits share no thing, no picture, no held-out wording and no question without a picture.

    Args:
        folder: made if need be.
        split: a fifth of the things is evaluation's.
        count: records; by default 4000 to train on and 500 to evaluate.
        seed: any integer; decides everything else.
        questions: file in MMEdit's format whose text-locality questions to ask; None asks those
            that are shipped.
        name: of the file and of the folder of its pictures; by default the split's.
        world: all things with their drawings; None reads the packages that were fetched.

    Raises:
        DataError: if an argument is not one of these, the packages are not there, or the folder
            cannot be written.
    """
    wanted = _checked_count(split, count)
    name = name or split
    general = shipped_questions(split) if questions is None else questions_in(questions, split)
    target, manifest = folder / f"{name}.json", folder / f"{name}.manifest.json"
    asked: dict[str, Any] = {
        "made by": _digest_of_code(),
        "split": split,
        "count": wanted,
        "seed": seed,
        "questions": _digest(repr(general)),
    }
    if _is_complete(target, manifest, asked):
        return target
    things, drawings = world if world is not None else _fetched_world()
    kept = things_of(things, split)
    cases = draw_cases(kept, general, split, wanted, seed)
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            pictures, records = Path(scratch) / "pictures", []
            pictures.mkdir()
            for number, case in enumerate(cases):
                records.append(_drawn(case, f"{number:06d}", name, pictures, drawings))
            text = json.dumps(records, indent=1, ensure_ascii=False) + "\n"
            # Without its manifest the old set counts as absent, so no mixture passes for complete.
            manifest.unlink(missing_ok=True)
            place = folder / "images" / name
            if place.exists():
                place.rename(Path(scratch) / "replaced")
            pictures.rename(place)
            target.write_text(text, encoding="utf-8")
            manifest.write_text(json.dumps(asked | {"sha256": _digest(text)}), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write records to {folder}: {error.strerror or error}") from error
    logger.info("wrote %d records to %s", wanted, target)
    return target


def things_of(things: Sequence[Thing], split: Split) -> list[Thing]:
    """Return the things that records of a split are about."""
    names = held_out(things)
    return [thing for thing in things if (thing.name in names) == (split == "eval")]


def _fetched_world() -> tuple[Sequence[Thing], Drawings]:
    folder = default_folder()
    try:
        parts = open_parts(folder)
    except PartsError as error:
        raise DataError(
            f"records are drawn from packages that {folder} does not hold, or not whole; get them"
            f" with: {GET_COMMAND}"
        ) from error
    things = parts.things()
    return things, parts.drawings(things)


def _drawn(case: Case, stem: str, name: str, folder: Path, drawings: Drawings) -> dict[str, Any]:
    """Return a case's record after drawing its pictures into a folder."""
    record: dict[str, Any] = dict(case.record)
    for field, picture in case.pictures.items():
        suffix = "" if field == "image" else f"_{field.removeprefix('image_')}"
        drawings.draw(picture).save(folder / f"{stem}{suffix}.png")
        record[field] = f"{name}/{stem}{suffix}.png"
    return record


def _checked_count(split: Split, count: int | None) -> int:
    if split not in get_args(Split):
        raise DataError(f"split {split!r} is unknown; use one of {get_args(Split)}")
    if count is None:
        return DEFAULT_COUNTS[split]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= LARGEST_COUNT:
        raise DataError(f"count {count!r} is not an integer from 1 to {LARGEST_COUNT}")
    return count


def _is_complete(target: Path, manifest: Path, asked: dict[str, Any]) -> bool:
    try:
        known = json.loads(manifest.read_text(encoding="utf-8"))
        text = target.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    if known != asked | {"sha256": _digest(text)}:
        return False
    images = target.parent / "images"
    return all(
        (images / record[field]).is_file() for record in json.loads(text) for field in PICTURES
    )


def _digest_of_code() -> str:
    here = Path(__file__).parent
    return _digest("".join((here / name).read_text(encoding="utf-8") for name in _DECIDING))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
