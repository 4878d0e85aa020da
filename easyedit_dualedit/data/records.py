"""Edit records of MMEdit, VLKEB, ComprehendEdit and ADS-Edit, validated before any run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from easyedit_dualedit.data import ads_edit, comprehend_edit
from easyedit_dualedit.data.binding import BINDING, Binding, missing_fields
from easyedit_dualedit.data.binding import FIELDS as BINDING_FIELDS
from easyedit_dualedit.data.comprehend_edit import (
    RIGHT_FILE,
    Nearest,
    is_theirs,
    named,
    nearest_of,
)
from easyedit_dualedit.data.record_pictures import (
    PICTURES,
    leads_out,
    names_in,
    problems_of_pictures,
    shown_in,
)
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.answers import exact_match
from easyedit_dualedit.model.inputs import Query, ShownLike
from easyedit_dualedit.storage.parsing import json_in

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
"""Fields of a record, all text; docs/guide/training.md tells what each holds."""

METRICS = (
    "reliability",
    "text_generality",
    "image_generality",
    "text_locality",
    "image_locality",
)
"""The queries of a record, in the order in which every table shows them."""

PORTABILITY = "port_new"
"""Field of VLKEB's files with questions whose answer follows from the edit; it may be missing."""

PORTABILITY_FIELDS = ("port_edit_q", "port_edit_a", "port_q", "port_a")
"""Fields of each of those: the question and answer without the picture, then those about it."""

QUESTION_PREFIX = "nq question: "
"""What MMEdit writes before every text-locality question, and VLKEB before none."""

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
    portability: tuple[Query, ...] = ()
    """Questions about the edit's picture whose answer follows from the edit; VLKEB has them."""
    template: str = "{}"
    """What the questions about pictures were put into."""
    folder: Path | None = None
    """What the names of the pictures were relative to; None for pictures from elsewhere."""
    nearest: Nearest | None = None
    """The samples nearest to the edit; ComprehendEdit's test file has them."""
    binding: Binding | None = None
    """Whether the edit changed a picture's answer or a thing; the emoji model's records have it."""

    queries: tuple[Query, ...] = dataclasses.field(init=False, repr=False, compare=False)
    """The query of each of `METRICS`, in that order."""

    def __post_init__(self) -> None:
        queries = (
            self.request,
            self.text_rephrase,
            self.image_rephrase,
            self.text_locality,
            self.image_locality,
        )
        object.__setattr__(self, "queries", queries)

    def question(self, query: Query) -> str:
        """Return what one of the record's queries asks, without the template around it."""
        before, _, after = self.template.partition("{}")
        asked = query.prompt
        fits = asked.startswith(before) and asked.endswith(after)
        if not query.shown or not fits:
            return asked
        return asked[len(before) : len(asked) - len(after)]


def load_records(
    path: Path,
    images: Path,
    *,
    template: str = "{}",
    limit: int | None = None,
    check_pictures: bool = True,
    allow_outside: bool = False,
    leave_out_bad: bool = False,
) -> list[Record]:
    """Return the records of a file, the first `limit` of them if given.

    White space around prompts and predictions is removed. Targets stay exactly as the file has
    them, since EasyEdit tokenises them so.
    No picture is opened: queries hold paths.

    Args:
        path: JSON list of objects with the fields of MMEdit, maybe VLKEB's `port_new`, and maybe
            `binding`; or with those of ComprehendEdit or ADS-Edit, whose records without an answer
            are left out.
        images: folder that the picture names in the file are relative to.
        template: what a picture's question is put into, such as "{} The answer is:".
        limit: how many records to use.
        check_pictures: whether every picture has to be there. Without, records can be read for
            what their texts and names say, as an audit does; asking a model about a picture that
            is not there raises DataError then.
        allow_outside: whether names of pictures may be absolute, or lead out of `images`.
        leave_out_bad: whether records that are not as they must be are left out.

    Raises:
        DataError: naming the bad records by index and field, the first few and the number of the
            others; `problems_of` returns all.
    """
    if "{}" not in template:
        raise DataError(f"template = {template!r} has no {{}} to put the question in; add one")
    every = read_items(path)
    items = _numbered(every, limit)
    looked_in = images if check_pictures else None
    if leave_out_bad:
        items = [each for each in items if not _problems(*each, looked_in)]
    problems = _problems_in(items, looked_in)
    right = _right_samples(path, every)
    if not allow_outside:
        # What is shown of others, beside the records themselves.
        neighbours = [*enumerate(every), *enumerate(right)] if any(map(is_theirs, every)) else []
        problems += list(dict.fromkeys(_outside([*items, *neighbours])))
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise DataError(f"{path}: " + "; ".join(problems[:_SHOWN]) + more)
    return [
        replace(
            _record(index, item, images, template),
            nearest=nearest_of(item, every, right, images, template, allow_outside=allow_outside),
        )
        for index, item in items
    ]


def problems_of(
    path: Path, images: Path, *, limit: int | None = None, check_pictures: bool = True
) -> list[str]:
    """Return a line for each thing that `load_records` would refuse in a file, in its order.

    Args:
        path: as for `load_records`.
        images: as for `load_records`.
        limit: how many records to look at.
        check_pictures: whether every picture has to be there.

    Raises:
        DataError: if the file cannot be read, or holds no list of records at all.
    """
    items = _numbered(read_items(path), limit)
    return _problems_in(items, images if check_pictures else None)


def read_items(path: Path, *, limit: int | None = None) -> list[Any]:
    """Return the items of a file of records as they are, not validated, the first `limit` if given.

    Raises:
        DataError: if the file cannot be read, or holds no list of at least one record.
    """
    items = json_in(path, "give a JSON file of records", wrong="is not JSON")
    if not isinstance(items, list) or not items:
        raise DataError(f"{path} must hold a list of at least one record, as MMEdit's files do")
    _require_limit(limit)
    return items[:limit]


def metric_queries(records: Sequence[Record], metric: str) -> list[Query]:
    """Return one kind of query of each record."""
    place = METRICS.index(metric)
    return [record.queries[place] for record in records]


def _require_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise DataError(f"limit = {limit}: at least 1 record")


def _numbered(items: Sequence[Any], limit: int | None) -> list[tuple[int, Any]]:
    """Return the records that are used, with MMEdit's names and their place in the file."""
    _require_limit(limit)
    kinds = (comprehend_edit, ads_edit)
    used = [
        (place, ads_edit.as_mmedit(comprehend_edit.as_mmedit(item)))
        for place, item in enumerate(items)
        if not any(kind.is_left_out(item) for kind in kinds)
    ]
    return used[:limit]


def _right_samples(path: Path, items: Sequence[Any]) -> list[Any]:
    beside = path.with_name(RIGHT_FILE)
    return read_items(beside) if any(map(is_theirs, items)) and beside.is_file() else []


def _problems_in(items: Sequence[tuple[int, Any]], images: Path | None) -> list[str]:
    return [line for index, item in items for line in _problems(index, item, images)]


def _problems(index: int, item: Any, images: Path | None) -> list[str]:
    """Return what is wrong with an item; without a folder its pictures are not looked for."""
    if not isinstance(item, dict):
        return [f"record {index} is {type(item).__name__}, not an object"]
    problems = []
    for field in FIELDS:
        name = named(item, field)
        if field in PICTURES:
            problems += problems_of_pictures(index, item, field, name, images)
            continue
        if field not in item:
            problems.append(f"record {index} has no field {name}")
            continue
        problem = _problem_of_text(item[field], may_be_blank=field == "pred")
        if problem:
            problems.append(f"record {index}, field {name}: {problem}")
    problems = list(dict.fromkeys(problems))
    problems += _problems_of_portability(index, item.get(PORTABILITY, []))
    return problems + _problems_of_binding(index, item.get(BINDING, {}))


def _problems_of_portability(index: int, entries: Any) -> list[str]:
    place = f"record {index}, field {PORTABILITY}"
    if not isinstance(entries, list):
        return [f"{place}: {entries!r} is no list"]
    problems = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            problems.append(f"{place}[{number}]: {entry!r} is no object")
            continue
        for field in PORTABILITY_FIELDS:
            if field not in entry:
                problems.append(f"{place}[{number}] has no field {field}")
                continue
            problem = _problem_of_text(entry[field])
            if problem:
                problems.append(f"{place}[{number}].{field}: {problem}")
    return problems


def _problems_of_binding(index: int, fields: Any) -> list[str]:
    place = f"record {index}, field {BINDING}"
    if not isinstance(fields, dict):
        return [f"{place}: {fields!r} is no object"]
    problems = [f"{place} has no field {field}" for field in missing_fields(fields)]
    if fields and not any(field in fields for field in BINDING_FIELDS):
        problems.append(f"{place} asks nothing; give some of {', '.join(BINDING_FIELDS)}")
    for field in BINDING_FIELDS:
        problem = _problem_of_text(fields[field]) if field in fields else None
        if problem:
            problems.append(f"{place}.{field}: {problem}")
    old, new = fields.get("picture_old"), fields.get("picture_new")
    if not problems and old is not None and exact_match(old, str(new)):
        problems.append(f"{place}: picture_old and picture_new are one answer, {old!r}")
    return problems


def _problem_of_text(value: Any, *, may_be_blank: bool = False) -> str | None:
    if not isinstance(value, str) or not (may_be_blank or value.strip()):
        return f"{value!r} is no text"
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return f"{value!r} is no valid Unicode text"
    return None


def _outside(items: Sequence[tuple[int, Any]]) -> list[str]:
    """Return a line for each name of a picture that leads out of the folder of the pictures."""
    lines = []
    for index, item in items:
        for field in PICTURES if isinstance(item, dict) else ():
            lines += [
                f"record {index}, field {named(item, field)}: {name!r} leads out of the folder"
                " of the pictures; --allow-outside (allow_outside: true for EasyEdit's datasets)"
                " takes such names"
                for name in names_in(item, field)
                if leads_out(name)
            ]
    return lines


def _record(index: int, item: dict[str, Any], images: Path, template: str) -> Record:
    def visual(prompt: str, shown: ShownLike | None, answer: str) -> Query:
        # A question about nothing is no question about a picture.
        text = prompt.strip() if shown is None else template.replace("{}", prompt.strip())
        return Query(text, shown, answer)

    own, rephrased, other = (shown_in(item, field, images) for field in PICTURES)
    answer = item["alt"]
    return Record(
        index,
        request=visual(item["src"], own, answer),
        text_rephrase=visual(item["rephrase"], own, answer),
        image_rephrase=visual(item["src"], rephrased, answer),
        text_locality=Query(item["loc"].strip(), None, item["loc_ans"]),
        image_locality=visual(item["m_loc_q"], other, item["m_loc_a"]),
        prediction=item["pred"].strip(),
        portability=tuple(
            visual(entry["port_q"], own, entry["port_a"]) for entry in item.get(PORTABILITY, [])
        ),
        template=template,
        folder=images,
        binding=(
            Binding.of(item[BINDING], images / names_in(item, "image")[0], template)
            if item.get(BINDING) and own is not None
            else None
        ),
    )
