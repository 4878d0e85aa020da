"""The benchmark's page: one HTML file with every number and case, which fetches nothing."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.files import write_text
from easyedit_dualedit.report.markup import Element, element, html_of
from easyedit_dualedit.report.page.background import (
    data_section,
    details,
    facts,
    warnings_of,
    workarounds,
)
from easyedit_dualedit.report.page.browser import case_section, select
from easyedit_dualedit.report.page.headline import headline
from easyedit_dualedit.report.page.numbers import cost_table, protocol_section
from easyedit_dualedit.report.page.results import Results
from easyedit_dualedit.report.page.training import training_section
from easyedit_dualedit.report.target_split import split_line

__all__ = ["write_document", "write_page"]

_SECTIONS = {
    "results": "Results",
    "costs": "Costs",
    "training": "Layers and training",
    "data": "Data",
    "workarounds": "Workarounds",
    "cases": "Cases",
}

_READING = (
    "Numbers are percent: the mean over cases and its 95 % interval. Each protocol"
    " asks something else, so compare within a table and never between two. Bold is the highest of"
    " a column. The unedited model changes no answer and is not ranked."
)


def write_page(
    path: Path,
    metrics: Mapping[str, Any],
    cases: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    pictures: Mapping[str, Path] = MappingProxyType({}),
    most_cases: int = 300,
) -> None:
    """Write a benchmark as one HTML file that can be opened anywhere and fetches nothing.

    Args:
        path: the file.
        metrics: content of the benchmark's `metrics.json`, and what `training_section` takes.
        cases: for each method its cases, `{"index", "values": {protocol: {metric: 0 to 1}},
            "answers": {metric: text}, "gate": {metric: {"similarity", "open"}}, "queries": {metric:
            {"prompt", "image", "target"}}}`; queries are needed once for each index. The answers
            of the method "unedited" are those before the edit.
        pictures: files by the names that queries give; each is embedded once, small.
        most_cases: cases that are embedded; those in which DualEdit fails, or else the first
            method that was measured, come first.

    Raises:
        ConfigError: if `most_cases` is negative.
        DataError: if the metrics have no title or no method, a case has no index, or the file
            cannot be written.
    """
    if most_cases < 0:
        raise ConfigError(f"most_cases is {most_cases}; give 0 or a positive number of cases")
    results = Results(metrics)
    selection = select(results, cases, most_cases)
    warnings = warnings_of(results)
    protocols = [protocol_section(results, name, warnings) for name in results.protocols]
    reading = [element("p", _READING if protocols else "No method has numbers.")]
    if protocols and split_line(metrics):
        reading.append(element("p", split_line(metrics)))
    content = {
        "results": [*reading, *protocols],
        "costs": [cost_table(results)],
        "training": training_section(metrics),
        "data": data_section(results),
        "workarounds": [*workarounds(results), details(results)],
        "cases": case_section(results, selection, pictures),
    }
    sections = {name: title for name, title in _SECTIONS.items() if content[name]}
    links = [element("a", title, href=f"#{name}") for name, title in sections.items()]
    header = element(
        "header",
        element("h1", str(metrics["title"])),
        facts(results),
        *headline(results),
        element("nav", *links, aria_label="Sections"),
    )
    main = element("main")
    for name, title in sections.items():
        heading = element("h2", title, id=f"{name}-title")
        main.append(
            element("section", heading, *content[name], id=name, aria_labelledby=f"{name}-title")
        )
    write_document(path, str(metrics["title"]), header, main, script=_asset("cases.js"))


def write_document(path: Path, title: str, *body: Element, script: str = "") -> None:
    """Write a page with the style of all, which fetches nothing and runs only its own script.

    Raises:
        DataError: if the file cannot be written.
    """
    write_text(path, html_of(_document(title, body, script)))


def _document(title: str, body: Sequence[Element], script: str) -> Element:
    style = _asset("page.css")
    runs = _digest(script) if script else "'none'"
    scripts = [element("script", script)] if script else []
    policy = (
        f"default-src 'none'; script-src {runs}; style-src {_digest(style)};"
        " img-src data:; base-uri 'none'; form-action 'none'"
    )
    return element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", title),
            element("link", rel="icon", href="data:,"),
            element("style", style),
        ),
        element("body", *body, *scripts),
        lang="en",
    )


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Return what a policy calls an inline style or script, the only ones it then allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
