"""The cases that the page lets a reader look through, and the controls to do so."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.scope import IN_SCOPE
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.results import Results
from easyedit_dualedit.report.page.thumbnails import FRAMES, names_of, thumbnails
from easyedit_dualedit.report.page.wording import (
    ASKED_BY,
    COMPARING,
    ORDER,
    TELLING,
    UNEDITED,
    counted,
    metric_name,
    ordered,
)

PER_PAGE = 20
_PARTS = ("values", "answers", "gate")
_DIGITS = 6


@dataclass(frozen=True)
class Selection:
    """The cases that are in the page."""

    cases: Sequence[Mapping[str, Any]]
    """`{"index", "queries", "methods": {name: {"values", "answers", "gate"}}}`, in the order of the
    page."""
    total: int
    """How many cases there are."""


def select(
    results: Results, cases: Mapping[str, Sequence[Mapping[str, Any]]], most: int
) -> Selection:
    """Return the cases by record, those first in which the favourite method fails.

    Args:
        results: the benchmark's.
        cases: by method.
        most: how many to keep.

    Raises:
        DataError: if a case does not say which record it is of.
    """
    found: dict[Any, dict[str, Any]] = {}
    for name in sorted(cases, key=lambda name: name != UNEDITED):
        for case in cases[name]:
            if "index" not in case:
                raise DataError(f"a case of {name} has no index; give the benchmark's own cases")
            index = case["index"]
            entry = found.setdefault(index, {"index": index, "queries": {}, "methods": {}})
            entry["queries"] = {**(case.get("queries") or {}), **entry["queries"]}
            entry["methods"][name] = {part: case.get(part) or {} for part in _PARTS}

    def rank(case: Mapping[str, Any]) -> tuple[bool, bool, Any]:
        values = case["methods"].get(results.favourite, {}).get("values", {})
        fails = {protocol: _fails(of_metrics) for protocol, of_metrics in values.items()}
        return not fails.get(results.main_protocol), not any(fails.values()), case["index"]

    return Selection(sorted(found.values(), key=rank)[:most], len(found))


def case_section(
    results: Results, selection: Selection, pictures: Mapping[str, Path]
) -> list[Element]:
    """Return notes, controls, the place where cases are shown, and the cases as JSON."""
    cases = selection.cases
    wanted = [
        name for case in cases for query in case["queries"].values() for name in names_of(query)
    ]
    small, unreadable = thumbnails(wanted, pictures)
    content = {
        "perPage": PER_PAGE,
        "protocol": results.main_protocol,
        "protocols": _protocols(results, cases),
        "methods": [
            {"name": name, "readsLabel": bool(results.methods.get(name, {}).get("reads_label"))}
            for name in _methods(results, cases)
        ],
        "unedited": UNEDITED,
        "favourite": results.favourite,
        "metrics": {name: metric_name(name) for name in _metrics(cases)},
        "comparing": COMPARING,
        "inScope": IN_SCOPE,
        "families": ASKED_BY,
        "telling": TELLING,
        "pictures": small,
        "frames": FRAMES,
        "cases": cases,
    }
    return [
        *_notes(results, selection, unreadable),
        _controls(),
        element("div", id="list", aria_live="off"),
        _paging("below"),
        element(
            "noscript",
            element("p", "The cases need JavaScript; all numbers are above.", class_="note"),
        ),
        element("script", _json(content), type="application/json", id="content"),
    ]


def _notes(results: Results, selection: Selection, unreadable: Sequence[str]) -> list[Element]:
    shown = []
    first = (
        ""
        if results.favourite is None
        else f" Those in which {results.favourite} fails under {results.main_protocol} come first."
    )
    if len(selection.cases) < selection.total:
        text = (
            f"This page holds {len(selection.cases):,} of {counted(selection.total, 'case')};"
            f" the others were left out to keep it small.{first}"
        )
    elif selection.total:
        text = f"All {counted(selection.total, 'case')} of the benchmark.{first}"
    else:
        text = "There are no cases to show."
    shown.append(element("p", text, id="embedded"))
    if unreadable:
        shown.append(
            element(
                "p",
                f"{counted(len(unreadable), 'picture')} could not be read and"
                f" {'is' if len(unreadable) == 1 else 'are'} left out: {', '.join(unreadable)}.",
                class_="note warning",
            )
        )
    shown.append(
        element(
            "p",
            "Answers are always the free greedy ones, also where the chosen protocol feeds the"
            " target in and so may judge otherwise than they look. The address of the page keeps"
            " what is chosen here, so it can be passed on.",
            class_="note",
        )
    )
    return shown


def _controls() -> Element:
    def labelled(name: str, label: str, control: Element) -> Element:
        control.set("id", name)
        return element("div", element("label", label, for_=name), control, class_="control")

    return element(
        "form",
        labelled("protocol", "Protocol", element("select")),
        labelled("method", "Method", element("select")),
        labelled("metric", "Metric", element("select")),
        labelled(
            "search",
            "Search questions, targets and answers",
            element("input", type="search", autocomplete="off", spellcheck="false"),
        ),
        element(
            "div",
            element("input", type="checkbox", id="failures"),
            element("label", "Only failures", for_="failures"),
            class_="control check",
        ),
        element("button", "Clear", type="reset", id="clear"),
        element("output", id="count", role="status", aria_live="polite"),
        _paging("above"),
        id="filters",
        aria_label="Choose cases",
        hidden="",
    )


def _paging(place: str) -> Element:
    return element(
        "div",
        element("button", "Previous", type="button", class_="previous"),
        element("span", class_="page"),
        element("button", "Next", type="button", class_="next"),
        class_="paging",
        role="group",
        aria_label=f"Pages, {place} the cases",
        hidden="",
    )


def _fails(values: Mapping[str, Any]) -> bool:
    return any(
        value is not None and value < 1 for name, value in values.items() if name not in TELLING
    )


def _protocols(results: Results, cases: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the metrics of each protocol that any case has values of."""
    found: dict[str, dict[str, None]] = {}
    for case in cases:
        for method in case["methods"].values():
            for protocol, values in method["values"].items():
                found.setdefault(protocol, {}).update(dict.fromkeys(values))
    names = ordered(dict.fromkeys(found), tuple(results.protocols))
    return {name: ordered(dict(found[name]), ORDER) for name in names}


def _methods(results: Results, cases: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {name: None for case in cases for name in case["methods"]}
    return ordered(found, tuple(results.methods))


def _metrics(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    found: dict[str, None] = {}
    for case in cases:
        found.update(dict.fromkeys(case["queries"]))
        for method in case["methods"].values():
            found.update(dict.fromkeys(method["answers"]))
            for values in method["values"].values():
                found.update(dict.fromkeys(values))
    return list(found)


def _json(value: Any) -> str:
    text = json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Nothing in it can end the script element or begin a comment.
    return text.replace("<", "\\u003c")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, _DIGITS) if math.isfinite(value) else None
    return value
