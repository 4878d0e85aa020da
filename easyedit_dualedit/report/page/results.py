"""The page's numbers: who is ahead, a table and charts for each protocol, and what edits cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EXPLANATIONS, PROTOCOLS
from easyedit_dualedit.report.page.charts import Bar, chart
from easyedit_dualedit.report.page.markup import Element, element
from easyedit_dualedit.report.page.wording import (
    DASH,
    FAVOURITE,
    MISSING,
    ORDER,
    UNBROKEN,
    UNEDITED,
    count,
    counted,
    decimal,
    duration,
    metric_name,
    number,
    ordered,
    size,
    whole,
)

_COSTS = (
    ("seconds_per_edit", "one edit", duration),
    ("forward_overhead", "forward, times unedited", lambda value: decimal(value, 2)),
    ("peak_memory_bytes", "peak memory", size),
    ("trained_parameters", "trained parameters", count),
    ("bytes_per_edit", "stored per edit", size),
    ("training_seconds", "training before", duration),
    ("making_seconds", "loading and training", duration),
)


@dataclass(frozen=True)
class Results:
    """The metrics of a benchmark as the page reads them."""

    metrics: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse what is no benchmark's metrics.

        Raises:
            DataError: if there is no title or no method.
        """
        missing = [key for key in ("title", "methods") if not self.metrics.get(key)]
        if missing:
            raise DataError(
                f"the metrics have no {' and no '.join(missing)}; give what the benchmark wrote to"
                " its metrics.json"
            )

    @property
    def methods(self) -> Mapping[str, Mapping[str, Any]]:
        """Methods by name, in the order of the tables."""
        found: Mapping[str, Mapping[str, Any]] = self.metrics["methods"]
        return found

    @property
    def protocols(self) -> list[str]:
        """Protocols that some method has numbers of, in the order of the page."""
        names = {
            protocol: None
            for method in self.methods.values()
            for protocol in method.get("protocols") or {}
        }
        return ordered(names, PROTOCOLS)

    @property
    def main_protocol(self) -> str:
        """The protocol that the comparison is made under, or else the page's first."""
        comparison = self.metrics.get("comparison")
        if comparison:
            return str(comparison["protocol"])
        return next(iter(self.protocols), "generate")

    @property
    def favourite(self) -> str | None:
        """The method that the page is about, if any was measured."""
        done = [name for name in self.methods if self.is_done(name) and name != UNEDITED]
        return FAVOURITE if FAVOURITE in done else next(iter(done), None)

    def is_done(self, name: str) -> bool:
        """Return whether a method was measured."""
        return self.methods[name].get("status") == "done"

    def values(self, name: str, protocol: str) -> Mapping[str, Mapping[str, Any]]:
        """Return a method's numbers by metric; none if it failed or lacks the protocol."""
        if not self.is_done(name):
            return {}
        return (self.methods[name].get("protocols") or {}).get(protocol) or {}

    def columns(self, protocol: str) -> list[str]:
        """Return the metrics that any method has under a protocol."""
        names = {metric: None for name in self.methods for metric in self.values(name, protocol)}
        return ordered(names, ORDER)

    def why_missing(self, name: str) -> str:
        """Return why a method has no numbers under a protocol."""
        if self.is_done(name):
            return "not measured under this protocol"
        return f"failed: {self.methods[name].get('error') or 'no reason was recorded'}"

    def mean(self, name: str, protocol: str, metric: str) -> float | None:
        """Return a mean in percent, if there is one."""
        return number((self.values(name, protocol).get(metric) or {}).get("mean"))

    def best(self, protocol: str, metric: str) -> set[str]:
        """Return the methods with the highest mean, as it is shown; the unedited model is none."""
        means = {
            name: round(mean, 1)
            for name in self.methods
            if name != UNEDITED and (mean := self.mean(name, protocol, metric)) is not None
        }
        return {name for name, mean in means.items() if mean == max(means.values())}


def headline(results: Results) -> list[Element]:
    """Return what the benchmark found, in sentences; also where the favourite is not ahead."""
    shown = [element("p", _comparison(results), class_="finding")]
    shown += [element("p", text) for text in _reservations(results)]
    behind = _behind(results)
    if behind:
        name = str(results.favourite)
        items = [element("li", text) for text in behind]
        shown.append(element("p", f"{name} is not ahead everywhere:"))
        shown.append(element("ul", *items, class_="behind"))
    return shown


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
        row = element("tr", _row_header(results, name))
        costs = method.get("costs") or {}
        if results.is_done(name):
            for key, _, shown in columns:
                value = number(costs.get(key))
                cell = element("td", shown(value), class_="number")
                if value is not None:
                    cell.set("title", f"{value:,.10g}")
                row.append(cell)
        else:
            row.append(_gap(results, name, len(columns)))
        rows.append(row)
    heads = [element("th", title, scope="col", class_="number") for _, title, _ in columns]
    return scrolling(
        "Costs",
        element("caption", "Cost of an edit, and of the training before the first one"),
        element("thead", element("tr", element("th", "method", scope="col"), *heads)),
        element("tbody", *rows),
    )


def scrolling(label: str, *parts: Element) -> Element:
    """Return a table that scrolls by itself where the page is too narrow for it."""
    return element(
        "div",
        element("table", *parts),
        class_="scrolling",
        role="region",
        aria_label=label,
        tabindex="0",
    )


def _comparison(results: Results) -> str:
    comparison = results.metrics.get("comparison")
    if not comparison:
        if results.favourite is None:
            return "No method was measured; the tables say why."
        mean = results.mean(results.favourite, results.main_protocol, AVERAGE)
        reached = "" if mean is None else f" reaches an average of {decimal(mean)} and"
        return (
            f"{results.favourite}{reached} has nothing to be compared with under"
            f" {results.main_protocol}."
        )
    best, other, protocol = comparison["best"], comparison["runner_up"], comparison["protocol"]
    mean = results.mean(best, protocol, AVERAGE) if best in results.methods else None
    reached = "" if mean is None else f": {decimal(mean)}"
    sentence = (
        f"{best} has the highest average under {protocol}{reached},"
        f" {_difference(comparison['difference'])} above {other}"
    )
    rival = comparison.get("rival")
    if rival is None or rival == other:
        return sentence + "."
    return f"{sentence}, and {_difference(comparison['against'][rival])} above {rival}."


def _difference(found: Mapping[str, float]) -> str:
    ends = f"{decimal(found['low'])} to {decimal(found['high'])}"
    return f"{decimal(found['mean'])} (95{UNBROKEN}% interval {ends})"


def _reservations(results: Results) -> list[str]:
    comparison = results.metrics.get("comparison")
    if not comparison:
        return []
    best, protocol, found = comparison["best"], comparison["protocol"], []
    low = number(comparison["difference"].get("low"))
    amount = number(comparison["difference"].get("n"))
    cases = "these cases" if amount is None else f"these {counted(int(amount), 'case')}"
    if low is not None and low <= 0:
        found.append(f"The interval holds 0, so {cases} do not tell the two apart.")
    favourite = results.favourite
    if favourite is not None and favourite != best:
        own = results.mean(favourite, protocol, AVERAGE)
        top = results.mean(best, protocol, AVERAGE) if best in results.methods else None
        if own is not None and top is not None:
            found.append(f"{favourite} reaches {decimal(own)}, {decimal(top - own)} below.")
    if results.methods.get(best, {}).get("reads_label"):
        found.append(f"{best} reads the label of the queries that it is measured on.")
    return found


def _behind(results: Results) -> list[str]:
    """Return for each protocol the metrics in which another method is above the favourite."""
    favourite = results.favourite
    if favourite is None:
        return []
    found = []
    for protocol in results.protocols:
        parts = []
        for metric in results.columns(protocol):
            own, best = results.mean(favourite, protocol, metric), results.best(protocol, metric)
            if own is None or not best or favourite in best:
                continue
            top = results.mean(min(best), protocol, metric)
            names = " and ".join(name for name in results.methods if name in best)
            parts.append(
                f"{metric_name(metric)} ({names} {decimal(top)}, {favourite} {decimal(own)})"
            )
        if parts:
            found.append(f"{protocol}: {'; '.join(parts)}")
    return found


def _table(results: Results, protocol: str, marks: Mapping[str, str]) -> Element:
    columns = list(marks)
    heads = []
    for metric, mark in marks.items():
        head = element("th", metric_name(metric), scope="col", class_="number")
        if mark:
            head.append(element("sup", mark))
        heads.append(head)
    amounts = {
        value.get("n")
        for name in results.methods
        for value in results.values(name, protocol).values()
    }
    best = {metric: results.best(protocol, metric) for metric in columns}
    rows = []
    for name in results.methods:
        row = element("tr", _row_header(results, name))
        values = results.values(name, protocol)
        if values:
            for metric in columns:
                row.append(_cell(values.get(metric), name in best[metric], len(amounts) > 1))
        else:
            row.append(_gap(results, name, len(columns)))
        rows.append(row)
    cases = f", {counted(int(amounts.pop() or 0), 'case')}" if len(amounts) == 1 else ""
    return scrolling(
        f"Numbers under {protocol}",
        element("caption", f"{protocol}, percent{cases}"),
        element("thead", element("tr", element("th", "method", scope="col"), *heads)),
        element("tbody", *rows),
    )


def _cell(value: Mapping[str, Any] | None, is_best: bool, show_amount: bool) -> Element:
    mean = number((value or {}).get("mean"))
    if value is None or mean is None:
        return element("td", MISSING, class_="number", title="not measured")
    cell = element("td", element("strong" if is_best else "span", decimal(mean)), class_="number")
    low, high = number(value.get("low")), number(value.get("high"))
    if low is not None and high is not None:
        cell.set("title", f"{decimal(low)} {DASH} {decimal(high)}, {whole(value.get('n'))} cases")
        cell.append(element("span", f" ±{decimal((high - low) / 2)}", class_="spread"))
    if show_amount:
        cell.append(element("span", f" n {whole(value.get('n'))}", class_="spread"))
    return cell


def _gap(results: Results, name: str, width: int) -> Element:
    kind = "gap" if results.is_done(name) else "gap failed"
    reason = element("span", results.why_missing(name))
    return element("td", reason, colspan=str(max(1, width)), class_=kind)


def _row_header(results: Results, name: str) -> Element:
    header = element("th", name, scope="row")
    if name == results.favourite:
        header.set("class", "favourite")
    if results.methods[name].get("reads_label"):
        header.text = f"{name} "
        header.append(element("span", "reads the label", class_="tag"))
    return header


def _bars(results: Results, protocol: str, metric: str) -> list[Bar]:
    best = results.best(protocol, metric)
    bars = []
    for name in results.methods:
        value = results.values(name, protocol).get(metric)
        missing = "not measured" if results.is_done(name) else "failed"
        bars.append(Bar(name, value, missing, name in best))
    return bars
