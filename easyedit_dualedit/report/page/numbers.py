"""The page's numbers: a table and charts for each protocol, and what edits cost."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EXPLANATIONS
from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.charts import Bar, chart
from easyedit_dualedit.report.page.results import Results
from easyedit_dualedit.report.page.wording import (
    DASH,
    MISSING,
    count,
    counted,
    decimal,
    duration,
    metric_name,
    number,
    size,
    whole,
)
from easyedit_dualedit.report.table import Cell, Column, Table, numbers, texts
from easyedit_dualedit.report.target_split import split_table

_COSTS = (
    ("seconds_per_edit", "one edit", duration),
    ("forward_overhead", "forward, times unedited", lambda value: decimal(value, 2)),
    ("peak_memory_bytes", "peak memory", size),
    ("trained_parameters", "trained parameters", count),
    ("bytes_per_edit", "stored per edit", size),
    ("training_seconds", "training before", duration),
    ("making_seconds", "loading and training", duration),
)


def protocol_section(
    results: Results, protocol: str, warnings: Mapping[str, Sequence[str]]
) -> Element:
    """Return explanation, table and charts of one protocol.

    Args:
        results: the benchmark's.
        protocol: whose numbers.
        warnings: what to know about a metric of these data, by metric.
    """
    columns = results.columns(protocol)
    notes = list(dict.fromkeys(text for metric in columns for text in warnings.get(metric, ())))
    marks = {
        metric: ",".join(str(notes.index(text) + 1) for text in warnings.get(metric, ()))
        for metric in columns
    }
    section = element(
        "section",
        element("h3", element("code", protocol)),
        element("p", EXPLANATIONS.get(protocol, "This page has no explanation of it.")),
        _table(results, protocol, marks),
        id=f"protocol-{protocol}",
        class_="protocol",
    )
    split = split_table(results.metrics, protocol)
    if split is not None:
        section.append(split.html(f"Numbers under {protocol} by target"))
    for place, text in enumerate(notes, 1):
        section.append(element("p", element("sup", str(place)), f" {text}.", class_="note"))
    if any(method.get("reads_label") for method in results.methods.values()):
        section.append(
            element(
                "p",
                "“Reads the label”: the method looks at the answer of the very query that it is"
                " measured on, which it would not have in use.",
                class_="note",
            )
        )
    charts = [
        chart(metric_name(metric), _bars(results, protocol, metric))
        for metric in sorted(columns, key=lambda metric: metric != AVERAGE)
    ]
    section.append(element("div", *charts, class_="charts"))
    return section


def cost_table(results: Results) -> Element:
    """Return the table of what editing costs, a row for each method."""
    given = {key for method in results.methods.values() for key in method.get("costs") or {}}
    columns = [column for column in _COSTS if column[0] in given]
    rows = []
    for name, method in results.methods.items():
        costs = method.get("costs") or {}
        cells = [_gap(results, name, len(columns))]
        if results.is_done(name):
            cells = [_cost(number(costs.get(key)), shown) for key, _, shown in columns]
        rows.append([_row_header(results, name), *cells])
    titles = [*texts("method"), *numbers(*(title for _, title, _ in columns))]
    caption = "Cost of an edit, and of the training before the first one"
    return Table(titles, rows, caption).html("Costs")


def _table(results: Results, protocol: str, marks: Mapping[str, str]) -> Element:
    amounts = {
        value.get("n")
        for name in results.methods
        for value in results.values(name, protocol).values()
    }
    best = {metric: results.best(protocol, metric) for metric in marks}
    rows = []
    for name in results.methods:
        values = results.values(name, protocol)
        cells = [_gap(results, name, len(marks))]
        if values:
            cells = [
                _cell(values.get(metric), name in best[metric], len(amounts) > 1)
                for metric in marks
            ]
        rows.append([_row_header(results, name), *cells])
    cases = f", {counted(int(amounts.pop() or 0), 'case')}" if len(amounts) == 1 else ""
    titles = [Column(metric_name(metric), True, mark=mark) for metric, mark in marks.items()]
    caption = f"{protocol}, percent{cases}"
    return Table([*texts("method"), *titles], rows, caption).html(f"Numbers under {protocol}")


def _cell(value: Mapping[str, Any] | None, is_best: bool, show_amount: bool) -> Cell:
    mean = number((value or {}).get("mean"))
    if value is None or mean is None:
        return Cell([MISSING], "not measured")
    content, hint = [element("strong" if is_best else "span", decimal(mean))], ""
    low, high = number(value.get("low")), number(value.get("high"))
    if low is not None and high is not None:
        hint = f"{decimal(low)} {DASH} {decimal(high)}, {whole(value.get('n'))} cases"
        content.append(element("span", f" {decimal(low)}{DASH}{decimal(high)}", class_="spread"))
    if show_amount:
        content.append(element("span", f" n {whole(value.get('n'))}", class_="spread"))
    return Cell(content, hint)


def _cost(value: float | None, shown: Callable[[Any], str]) -> Cell:
    return Cell([shown(value)], "" if value is None else f"{value:,.10g}")


def _gap(results: Results, name: str, width: int) -> Cell:
    kind = "gap" if results.is_done(name) else "gap failed"
    return Cell([element("span", results.why_missing(name))], kind=kind, columns=width)


def _row_header(results: Results, name: str) -> Cell:
    kind = "favourite" if name == results.favourite else ""
    if results.methods[name].get("reads_label"):
        return Cell([f"{name} ", element("span", "reads the label", class_="tag")], kind=kind)
    return Cell([name], kind=kind)


def _bars(results: Results, protocol: str, metric: str) -> list[Bar]:
    best = results.best(protocol, metric)
    bars = []
    for name in results.methods:
        value = results.values(name, protocol).get(metric)
        missing = "not measured" if results.is_done(name) else "failed"
        bars.append(Bar(name, value, missing, name in best))
    return bars
