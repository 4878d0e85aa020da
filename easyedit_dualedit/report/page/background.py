"""What the numbers rest on: the data, its audit and quirks, workarounds, settings, versions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.results import Results
from easyedit_dualedit.report.page.wording import counted, decimal, duration, number, whole
from easyedit_dualedit.report.table import Cell, Table, numbers, texts
from easyedit_dualedit.report.tuning import tuning_table

_EXAMPLES = 5
_DIGEST = 12


def facts(results: Results) -> Element:
    """Return the benchmark in a line: data, methods, how long it took."""
    metrics = results.metrics
    evaluated = (metrics.get("data") or {}).get("evaluated") or {}
    failed = [name for name in results.methods if not results.is_done(name)]
    methods = counted(len(results.methods), "method")
    shown = {
        "data": str(evaluated.get("name", "not recorded")),
        "edits": whole(evaluated.get("records")),
        "methods": methods + (f", {len(failed)} failed" if failed else ""),
        "seed": str(metrics.get("seed", "not recorded")),
        "took": duration(metrics.get("seconds")),
    }
    pairs = [
        element("div", element("dt", name), element("dd", text)) for name, text in shown.items()
    ]
    return element("dl", *pairs, class_="facts")


def warnings_of(results: Results) -> dict[str, list[str]]:
    """Return what the audit found about the data of a metric, by metric.

    A finding is about a metric if it names it.
    """
    metrics = {metric for protocol in results.protocols for metric in results.columns(protocol)}
    found: dict[str, list[str]] = {}
    for finding in _findings(results):
        if not finding.get("found"):
            continue
        text = str(finding["what"]).replace("-", " ").replace("_", " ").lower()
        for metric in metrics:
            if metric.replace("_", " ") in text:
                found.setdefault(metric, []).append(
                    f"Audit: {finding['what']}: {whole(finding['found'])} of"
                    f" {whole(finding.get('of'))} ({decimal(finding.get('percent'))} %)"
                )
    return found


def data_section(results: Results) -> list[Element]:
    """Return which data were used, what the audit found in them, and their quirks."""
    data = results.metrics.get("data") or {}
    rows: list[list[Any]] = []
    for use in ("evaluated", "trained_on"):
        cells: list[Any] = [Cell(["nothing"], kind="gap", columns=3)]
        source = data.get(use)
        if source:
            digest = str(source.get("digest", ""))
            short = digest[:_DIGEST] + ("…" if len(digest) > _DIGEST else "")
            cells = [
                str(source.get("name", "")),
                whole(source.get("records")),
                Cell([element("code", short, title=digest)]),
            ]
        rows.append([use.replace("_", " "), *cells])
    columns = [*texts("use", "data"), *numbers("records"), *texts("digest")]
    shown = [Table(columns, rows, "Records").html("Data"), *_audit(results), *_quirks(results)]
    return [element("div", *shown, class_="side-by-side")]


def workarounds(results: Results) -> list[Element]:
    """Return what was done to run each method that its authors did not do."""
    shown, without = [], []
    for name, method in results.methods.items():
        remarks = list(method.get("remarks") or ())
        if remarks:
            shown += [element("dt", name), *(element("dd", remark) for remark in remarks)]
        else:
            without.append(name)
    found = [element("dl", *shown, class_="remarks")] if shown else []
    choices = tuning_table(results.metrics)
    if choices is not None:
        found += [choices.html(choices.title), element("p", choices.caption, class_="note")]
    if without:
        found.append(element("p", f"None for {', '.join(without)}.", class_="note"))
    return found


def details(results: Results) -> Element:
    """Return settings, versions and the seed, folded away."""
    metrics = results.metrics
    shown = element("details", element("summary", "Settings, versions and seed"))
    seed = {"seed": metrics.get("seed"), "seconds": metrics.get("seconds")}
    for title, values in (
        ("Seed", seed),
        ("Versions", metrics.get("versions")),
        ("Settings", metrics.get("settings")),
    ):
        rows = [[str(key), _plain(value)] for key, value in (values or {}).items()]
        if rows:
            shown.append(Table(texts("name", "value"), rows, title).html(title))
    return shown


def _audit(results: Results) -> list[Element]:
    if results.metrics.get("audit") is None:
        return [element("p", "The data were not audited for leaks.", class_="note")]
    rows = []
    for finding in _findings(results):
        found = number(finding.get("found")) or 0
        what: list[Element | str] = [str(finding["what"])]
        examples = [str(example) for example in finding.get("examples") or ()][:_EXAMPLES]
        if examples:
            summary = element("summary", counted(len(examples), "example"))
            items = [element("li", example) for example in examples]
            what.append(element("details", summary, element("ul", *items)))
        share = f"{decimal(finding.get('percent'))} %"
        kind = "number warning" if found else ""
        rows.append([Cell(what), whole(found), whole(finding.get("of")), Cell([share], kind=kind)])
    if not rows:
        return [element("p", "The audit for leaks found nothing.", class_="note")]
    columns = [*texts("what"), *numbers("found", "of", "share")]
    return [Table(columns, rows, "Audit: what is evaluated and also trained on").html("Audit")]


def _quirks(results: Results) -> list[Element]:
    quirks: Mapping[str, Any] = results.metrics.get("quirks") or {}
    if not quirks:
        return []
    rows = [[str(what), whole(amount)] for what, amount in quirks.items()]
    columns = [*texts("what"), *numbers("records")]
    return [Table(columns, rows, "Quirks of the evaluated records").html("Quirks")]


def _findings(results: Results) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = (results.metrics.get("audit") or {}).get("findings") or ()
    return found


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
