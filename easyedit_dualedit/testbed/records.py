"""Editing records about the testbed's world, in MMEdit's own format."""

import hashlib
import json
import logging
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.facts import facts_of
from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.questions import (
    VQA_FAMILIES,
    Question,
    caption_of,
    draw_question,
    false_answer,
    rearrange_for,
)
from easyedit_dualedit.testbed.world import Scene, Split, draw_scene

logger = logging.getLogger(__name__)

Task = Literal["vqa", "caption"]

DEFAULT_COUNTS: dict[tuple[Task, Split], int] = {
    ("vqa", "train"): 6000,
    ("vqa", "eval"): 300,
    ("caption", "train"): 500,
    ("caption", "eval"): 100,
}
LARGEST_COUNT = 10_000

# Part of the manifest: raise it whenever the same seed gives other bytes.
_VERSION = 2


@dataclass(frozen=True)
class Record:
    """One record with MMEdit's eleven fields; pictures are paths below ``images``."""

    src: str
    pred: str
    rephrase: str
    alt: str
    image: str
    image_rephrase: str
    loc: str
    loc_ans: str
    m_loc: str
    m_loc_q: str
    m_loc_a: str


@dataclass(frozen=True)
class Case:
    """A record before its pictures are drawn: scenes, and the seeds to draw them with."""

    record: Record
    pictures: tuple[tuple[str, Scene, int], ...]
    question: Question
    locality: Question


def write_records(
    folder: Path,
    task: Task,
    split: Split,
    count: int | None = None,
    seed: int = 0,
) -> Path:
    """Write records and their pictures; return the path of the JSON file.

    The file is ``folder/<task>_<split>.json``, and pictures lie below ``folder/images``, which is
    what EasyEdit calls ``coco_image`` and ``rephrase_image``. The same arguments give the same
    bytes; where they are there already, nothing is done. An interrupted call leaves the folder as
    it was, or without the JSON file, never with half of one.

    Args:
        folder: made if need be.
        task: questions about pictures, or captions.
        split: decides scenes, locality scenes and facts; the two splits share none of them.
        count: records; by default 6000 and 300 (vqa), 500 and 100 (caption).
        seed: any integer; decides everything else.

    Raises:
        DataError: an argument is not one of these, or the folder cannot be written.
    """
    wanted = _checked_count(task, split, count, seed)
    folder = Path(folder)
    name = f"{task}_{split}"
    target = folder / f"{name}.json"
    manifest = folder / f"{name}.manifest.json"
    asked: dict[str, object] = {
        "version": _VERSION,
        "task": task,
        "split": split,
        "count": wanted,
        "seed": seed,
    }
    if _is_complete(target, manifest, asked):
        return target
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            made = _make(Path(scratch), draw_cases(task, split, wanted, seed), asked)
            _publish(made, folder / "images" / name, target, manifest)
    except OSError as error:
        raise DataError(f"cannot write records to {folder}: {error.strerror or error}") from error
    logger.info("wrote %d records to %s", wanted, target)
    return target


def draw_cases(task: Task, split: Split, count: int, seed: int) -> Iterator[Case]:
    """Yield cases whose scenes all differ, those of locality queries included."""
    source = random.Random(f"records {task} {split} {seed}")
    facts = facts_of(split)
    used: set[str] = set()

    def fresh_scene() -> Scene:
        scene = draw_scene(source, lambda scene: scene.split == split and scene.key not in used)
        used.add(scene.key)
        return scene

    for number in range(count):
        scene = fresh_scene()
        if task == "caption":
            question = caption_of(scene)
            wrong = caption_of(draw_scene(source, partial(_is_other, scene))).answer
        else:
            question = draw_question(scene, source)
            wrong = false_answer(question, source)
        elsewhere = fresh_scene()
        locality = draw_question(elsewhere, source, VQA_FAMILIES)
        while locality.meaning == question.meaning:
            locality = draw_question(elsewhere, source, VQA_FAMILIES)
        stem = f"{task}_{split}/{number:06d}"
        fact = source.choice(facts)
        record = Record(
            src=source.choice(question.source_texts()),
            pred=question.answer,
            rephrase=source.choice(question.rephrase_texts()),
            alt=wrong,
            image=f"{stem}.png",
            image_rephrase=f"{stem}_rephrase.png",
            loc=fact.prompt,
            loc_ans=fact.answer,
            m_loc=f"{stem}_locality.png",
            m_loc_q=source.choice(locality.source_texts()),
            m_loc_a=locality.answer,
        )
        moved = rearrange_for(scene, question, source)
        pictures = (
            (record.image, scene, source.getrandbits(48)),
            (record.image_rephrase, moved, source.getrandbits(48)),
            (record.m_loc, elsewhere, source.getrandbits(48)),
        )
        yield Case(record, pictures, question, locality)


@dataclass(frozen=True)
class _Made:
    """A finished set under temporary names, all in ``folder``."""

    folder: Path
    pictures: Path
    records: Path
    manifest: Path


def _make(folder: Path, cases: Iterator[Case], asked: dict[str, object]) -> _Made:
    made = _Made(folder, folder / "pictures", folder / "records.json", folder / "manifest.json")
    made.pictures.mkdir()
    records = []
    for case in cases:
        records.append(asdict(case.record))
        for path, scene, picture_seed in case.pictures:
            render(scene, picture_seed).save(made.pictures / Path(path).name)
    text = json.dumps(records, indent=1)
    made.records.write_text(text, encoding="utf-8")
    made.manifest.write_text(json.dumps(asked | {"sha256": _digest(text)}), encoding="utf-8")
    return made


def _publish(made: _Made, pictures: Path, target: Path, manifest: Path) -> None:
    # Without its manifest the old set counts as absent, so no mixture passes for complete.
    manifest.unlink(missing_ok=True)
    target.unlink(missing_ok=True)
    if pictures.exists():
        pictures.rename(made.folder / "replaced")
    made.pictures.rename(pictures)
    made.records.replace(target)
    made.manifest.replace(manifest)


def _is_other(scene: Scene, other: Scene) -> bool:
    return other.split == scene.split and other.key != scene.key


def _checked_count(task: Task, split: Split, count: int | None, seed: int) -> int:
    if task not in get_args(Task):
        raise DataError(f"task {task!r} is unknown; use one of {get_args(Task)}")
    if split not in get_args(Split):
        raise DataError(f"split {split!r} is unknown; use one of {get_args(Split)}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise DataError(f"seed {seed!r} is not an integer; give an integer")
    if count is None:
        return DEFAULT_COUNTS[task, split]
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= LARGEST_COUNT:
        raise DataError(f"count {count!r} is not an integer from 1 to {LARGEST_COUNT}")
    return count


def _is_complete(target: Path, manifest: Path, asked: dict[str, object]) -> bool:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        text = target.read_text(encoding="utf-8")
        records = json.loads(text)
    except (OSError, ValueError):
        return False
    if found != asked | {"sha256": _digest(text)}:
        return False
    images = target.parent / "images"
    fields = ("image", "image_rephrase", "m_loc")
    return all((images / record[field]).is_file() for record in records for field in fields)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
