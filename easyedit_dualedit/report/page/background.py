"""What the numbers rest on: the data, its audit and quirks, workarounds, settings, versions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.report.page.markup import Element, element
from easyedit_dualedit.report.page.results import Results, scrolling
from easyedit_dualedit.report.page.wording import counted, decimal, duration, number, whole

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
    rows = []
    for use in ("evaluated", "trained_on"):
        row = element("tr", element("th", use.replace("_", " "), scope="row"))
        source = data.get(use)
        if source:
            digest = str(source.get("digest", ""))
            short = digest[:_DIGEST] + ("…" if len(digest) > _DIGEST else "")
            row.append(element("td", str(source.get("name", ""))))
            row.append(element("td", whole(source.get("records")), class_="number"))
            row.append(element("td", element("code", short, title=digest)))
        else:
            row.append(element("td", "nothing", colspan="3", class_="gap"))
        rows.append(row)
    head = element("tr", *_heads("use", "data", "records", "digest"))
    shown = [
        scrolling(
            "Data",
            element("caption", "Records"),
            element("thead", head),
            element("tbody", *rows),
        )
    ]
    shown += [_audit(results), *_quirks(results)]
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
        rows = [
            element("tr", element("th", str(key), scope="row"), element("td", _plain(value)))
            for key, value in (values or {}).items()
        ]
        if rows:
            head = element("thead", element("tr", *_heads("name", "value")))
            caption = element("caption", title)
            shown.append(scrolling(title, caption, head, element("tbody", *rows)))
    return shown


def _audit(results: Results) -> Element:
    if results.metrics.get("audit") is None:
        return element("p", "The data were not audited for leaks.", class_="note")
    rows = []
    for finding in _findings(results):
        found = number(finding.get("found")) or 0
        what = element("th", str(finding["what"]), scope="row")
        examples = [str(example) for example in finding.get("examples") or ()]
        if examples:
            what.append(_examples(examples))
        percent = element("td", f"{decimal(finding.get('percent'))} %", class_="number")
        if found:
            percent.set("class", "number warning")
        rows.append(
            element(
                "tr",
                what,
                element("td", whole(found), class_="number"),
                element("td", whole(finding.get("of")), class_="number"),
                percent,
            )
        )
    if not rows:
        return element("p", "The audit for leaks found nothing.", class_="note")
    return scrolling(
        "Audit",
        element("caption", "Audit: what is evaluated and also trained on"),
        element("thead", element("tr", *_heads("what", "found", "of", "share"))),
        element("tbody", *rows),
    )


def _examples(examples: Sequence[str]) -> Element:
    items = [element("li", example) for example in examples[:_EXAMPLES]]
    return element(
        "details", element("summary", counted(len(items), "example")), element("ul", *items)
    )


def _quirks(results: Results) -> list[Element]:
    quirks: Mapping[str, Any] = results.metrics.get("quirks") or {}
    if not quirks:
        return []
    rows = [
        element(
            "tr",
            element("th", str(what), scope="row"),
            element("td", whole(amount), class_="number"),
        )
        for what, amount in quirks.items()
    ]
    return [
        scrolling(
            "Quirks",
            element("caption", "Quirks of the evaluated records"),
            element("thead", element("tr", *_heads("what", "records"))),
            element("tbody", *rows),
        )
    ]


def _findings(results: Results) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = (results.metrics.get("audit") or {}).get("findings") or ()
    return found


def _heads(*titles: str) -> list[Element]:
    numbers = ("records", "found", "of", "share")
    return [
        element("th", title, scope="col", class_="number" if title in numbers else "")
        for title in titles
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
