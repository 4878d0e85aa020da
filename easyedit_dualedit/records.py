"""Edit records in MMEdit's JSON format, validated whole before anything runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.batch import Query
from easyedit_dualedit.errors import DataError

FIELDS = (
    "src",
    "pred",
    "rephrase",
    "alt",
    "image",
    "image_rephrase",
    "loc",
    "loc_ans",
    "m_loc",
    "m_loc_q",
    "m_loc_a",
)
"""Fields of a record, all text; see the README for what each holds."""

METRICS = (
    "reliability",
    "text_generality",
    "image_generality",
    "text_locality",
    "image_locality",
)
"""The queries of a record, in the order in which every table shows them."""

_PICTURES = ("image", "image_rephrase", "m_loc")
_SHOWN = 5


@dataclass(frozen=True)
class Record:
    """One edit and the queries that measure it."""

    index: int
    """Place in the file, from 0."""
    request: Query
    """Picture, prompt and new answer of the edit: reliability."""
    text_rephrase: Query
    image_rephrase: Query
    text_locality: Query
    image_locality: Query
    prediction: str
    """What the data set says that the unedited model answers."""

    @property
    def queries(self) -> tuple[Query, ...]:
        """The query of each of `METRICS`, in that order."""
        return (
            self.request,
            self.text_rephrase,
            self.image_rephrase,
            self.text_locality,
            self.image_locality,
        )


def load_records(
    path: Path, images: Path, *, template: str = "{}", limit: int | None = None
) -> list[Record]:
    """Return the records of a file, the first `limit` of them if given.

    Args:
        path: JSON list of objects with the fields of MMEdit.
        images: folder that the picture names in the file are relative to.
        template: what a picture's question is put into, such as "{} The answer is:".
        limit: how many records to use.

    Raises:
        DataError: naming every bad record by index and field.
    """
    if "{}" not in template:
        raise DataError(f"template = {template!r} has no {{}} to put the question in; add one")
    items = _read_list(path)
    if limit is not None and limit < 1:
        raise DataError(f"limit = {limit}: at least 1 record")
    chosen = items[:limit]
    problems = [
        line for index, item in enumerate(chosen) for line in _problems(index, item, images)
    ]
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataError(f"{path}: " + "; ".join(problems[:_SHOWN]) + more)
    return [_record(index, item, images, template) for index, item in enumerate(chosen)]


def _read_list(path: Path) -> list[Any]:
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(items, list) or not items:
        raise DataError(f"{path} must hold a list of at least one record, as MMEdit's files do")
    return items


def _problems(index: int, item: Any, images: Path) -> list[str]:
    if not isinstance(item, dict):
        return [f"record {index} is {type(item).__name__}, not an object"]
    found = []
    for field in FIELDS:
        if field not in item:
            found.append(f"record {index} has no field {field}")
        elif not isinstance(item[field], str) or (field != "pred" and not item[field].strip()):
            found.append(f"record {index}, field {field}: {item[field]!r} is no text")
        elif field in _PICTURES and not _is_file(images / item[field]):
            found.append(f"record {index}, field {field}: no picture at {images / item[field]}")
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a text that is too long for a name, or holds a zero
        return False


def _record(index: int, item: dict[str, str], images: Path, template: str) -> Record:
    def visual(prompt: str, picture: str, answer: str) -> Query:
        text = template.replace("{}", item[prompt].strip())
        return Query(text, images / item[picture], item[answer].strip())

    return Record(
        index,
        request=visual("src", "image", "alt"),
        text_rephrase=visual("rephrase", "image", "alt"),
        image_rephrase=visual("src", "image_rephrase", "alt"),
        text_locality=Query(item["loc"].strip(), None, item["loc_ans"].strip()),
        image_locality=visual("m_loc_q", "m_loc", "m_loc_a"),
        prediction=item["pred"].strip(),
    )


def queries_of(records: Sequence[Record], metric: str) -> list[Query]:
    """Return one kind of query of each record."""
    place = METRICS.index(metric)
    return [record.queries[place] for record in records]
