"""Leak audit: what the records of an evaluation share with those that a method was trained on.

A number measured on what was trained on says little about new questions, so every number is shown
beside its audit.
"""

import filecmp
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record
from easyedit_dualedit.data.training_targets import (
    TrainingTargets,
    normalised_target,
    targets_of,
)
from easyedit_dualedit.model.inputs import Query, content_digest
from easyedit_dualedit.model.pictures import Picture

_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """How many of the evaluated records share one thing with training."""

    what: str
    """The thing shared, named with the metric that it bears on."""
    found: int
    of: int
    examples: tuple[str, ...]
    """The first few of those found, each with the first record of training that shares it, if it
    is one that does."""

    @property
    def percent(self) -> float:
        """Share of `of`, 0 to 100; 0 of nothing."""
        return 100.0 * self.found / self.of if self.of else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name, ready for JSON."""
        return {
            "what": self.what,
            "found": self.found,
            "of": self.of,
            "percent": self.percent,
            "examples": list(self.examples),
        }


@dataclass(frozen=True)
class Audit:
    """What evaluated records share with training."""

    evaluated: int
    """Number of records evaluated."""
    trained: int
    """Number of records trained on."""
    findings: tuple[Finding, ...]
    """In the same order for every audit, those that found nothing included."""

    def to_dict(self) -> dict[str, Any]:
        """Return the audit by name, ready for JSON."""
        return {
            "evaluated": self.evaluated,
            "trained": self.trained,
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True)
class _Thing:
    """Something that a record holds: what it compares by, and how it is shown."""

    key: Hashable
    shown: str


_Reader = Callable[[Record], list[_Thing]]
_Chooser = Callable[[Record], Sequence[Query]]


def audit(evaluated: Sequence[Record], trained: Sequence[Record]) -> Audit:
    """Return what evaluated records share with the records that a method was trained on.

    Every evaluated record counts, also where several have the same pair or picture: a finding says
    what share of an evaluation's mean it touches. A record with several portability queries counts
    once; they are audited only if there are any.

    Questions and targets compare without their template, white space around them and case;
    text-locality questions also without the prefix "nq question: ", since data sets draw the same
    questions with and without it. Pictures compare by their names relative to their folder, so
    they need not be there (`load_records(..., check_pictures=False)`). If the folders of the two
    differ, one name is one picture unless both files are there and differ in content. A picture
    under two names, and pictures that only look alike, are not found.

    Args:
        evaluated: records that are measured.
        trained: records that adapters, gates or other methods were trained on.
    """
    names = _Names()

    def pairs(choose: _Chooser) -> _Reader:
        return lambda record: [_pair(record, query, names) for query in choose(record)]

    def pictures(choose: _Chooser) -> _Reader:
        return lambda record: [
            _Thing(name, name) for query in choose(record) for name in names.of(record, query)
        ]

    any_pair, any_picture = pairs(_visual), pictures(_visual)
    edit_pair, edit_picture = pairs(_request), pictures(_request)
    locality_pair, locality_picture = pairs(_image_locality), pictures(_image_locality)
    rephrased_picture = pictures(_image_rephrase)

    def edit(record: Record) -> list[_Thing]:
        (pair,) = edit_pair(record)
        (target,) = _target(record)
        return [_Thing((pair.key, target.key), f"{pair.shown} -> {target.shown}")]

    asked: list[tuple[str, _Reader, _Reader]] = [
        ("edits (reliability) with picture and question of an edit", edit_pair, edit_pair),
        ("edits (reliability) with picture, question and target of an edit", edit, edit),
        ("edits (reliability) with the target of an edit", _target, _target),
        ("edits (reliability) with picture and question of any query", edit_pair, any_pair),
        ("edits (reliability) with the picture of an edit", edit_picture, edit_picture),
        ("edits (reliability) with a rephrased picture", edit_picture, rephrased_picture),
        ("edits (reliability) with a locality picture", edit_picture, locality_picture),
        (
            "text-generality queries with picture and question of any query",
            pairs(_text_rephrase),
            any_pair,
        ),
        (
            "image-generality queries with picture and question of any query",
            pairs(_image_rephrase),
            any_pair,
        ),
        ("image-generality queries with the picture of any query", rephrased_picture, any_picture),
        (
            "image-locality queries with picture and question of an image-locality query",
            locality_pair,
            locality_pair,
        ),
        (
            "image-locality queries with picture and question of any query",
            locality_pair,
            any_pair,
        ),
        ("image-locality queries with the picture of any query", locality_picture, any_picture),
        (
            "text-locality queries with the question of a text-locality query",
            _text_question,
            _text_question,
        ),
    ]
    if any(record.portability for record in evaluated):
        what = "portability queries with picture and question of any query"
        asked.append((what, pairs(lambda record: record.portability), any_pair))
    places = {read: _first_places(trained, read) for read in {among for _, _, among in asked}}
    findings = tuple(
        _finding(f"{what} of training", evaluated, read, places[among])
        for what, read, among in asked
    )
    words = _words_finding(evaluated, TrainingTargets.of(targets_of(trained)))
    place = 1 + [read for _, read, _ in asked].index(_target)
    return Audit(len(evaluated), len(trained), (*findings[:place], words, *findings[place:]))


class _Names:
    """Names pictures so that two have one name if and only if they count as one picture."""

    def __init__(self) -> None:
        self._named: dict[tuple[Path | None, Path], str] = {}
        self._same: dict[str, dict[Path, str]] = {}

    def of(self, record: Record, query: Query) -> tuple[str, ...]:
        """Return the name of each picture of one of a record's queries."""
        return tuple(self._name(record.folder, picture) for picture in query.files)

    def _name(self, folder: Path | None, picture: Picture) -> str:
        if isinstance(picture, Image.Image):
            return f"picture {content_digest(picture)[:16]}"
        if (folder, picture) not in self._named:
            self._named[folder, picture] = self._new_name(folder, picture)
        return self._named[folder, picture]

    def _new_name(self, folder: Path | None, picture: Path) -> str:
        inside = folder is not None and picture.is_relative_to(folder)
        name = picture.relative_to(folder).as_posix() if folder and inside else picture.as_posix()
        same = self._same.setdefault(name, {})
        if picture not in same:
            likes = (given for other, given in same.items() if not _differ(picture, other))
            same[picture] = next(likes, picture.as_posix() if same else name)
        return same[picture]


def _differ(one: Path, other: Path) -> bool:
    """Return whether two files are both there and differ in content."""
    try:
        return not filecmp.cmp(one, other, shallow=False)
    except (OSError, ValueError):
        return False


def _finding(
    what: str, evaluated: Sequence[Record], read: _Reader, places: dict[Hashable, int]
) -> Finding:
    shared_by = of = 0
    examples: list[str] = []
    for record in evaluated:
        things = read(record)
        of += bool(things)
        shared = next((thing for thing in things if thing.key in places), None)
        if shared is None:
            continue
        shared_by += 1
        if len(examples) < _EXAMPLES:
            place = places[shared.key]
            examples.append(f"record {record.index}: {shared.shown} (training record {place})")
    return Finding(what, shared_by, of, tuple(examples))


def _first_places(records: Sequence[Record], read: _Reader) -> dict[Hashable, int]:
    places: dict[Hashable, int] = {}
    for record in records:
        for thing in read(record):
            places.setdefault(thing.key, record.index)
    return places


def _pair(record: Record, query: Query, names: _Names) -> _Thing:
    pictures, question = names.of(record, query), record.question(query).strip()
    return _Thing((pictures, question.casefold()), f"{', '.join(pictures)}: {question!r}")


def _target(record: Record) -> list[_Thing]:
    target = record.request.target or ""
    return [_Thing(normalised_target(target), repr(target.strip()))]


def _words_finding(evaluated: Sequence[Record], trained: TrainingTargets) -> Finding:
    known = [record for record in evaluated if trained.has_words(record.request.target or "")]
    examples = tuple(
        f"record {record.index}: {_target(record)[0].shown}" for record in known[:_EXAMPLES]
    )
    what = "edits (reliability) whose target has no word new to targets of training"
    return Finding(what, len(known), len(evaluated), examples)


def _text_question(record: Record) -> list[_Thing]:
    question = record.text_locality.prompt.strip()
    return [_Thing(question.casefold().removeprefix(QUESTION_PREFIX).strip(), repr(question))]


def _request(record: Record) -> list[Query]:
    return [record.request]


def _text_rephrase(record: Record) -> list[Query]:
    return [record.text_rephrase]


def _image_rephrase(record: Record) -> list[Query]:
    return [record.image_rephrase]


def _image_locality(record: Record) -> list[Query]:
    return [record.image_locality]


def _visual(record: Record) -> list[Query]:
    return [query for query in record.queries if query.shown]
