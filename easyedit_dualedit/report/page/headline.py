"""What the benchmark found, in sentences: who is ahead, by how much, and where not."""

from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.report.lead import lead_sentence
from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.results import Results
from easyedit_dualedit.report.page.wording import (
    UNBROKEN,
    counted,
    decimal,
    metric_name,
    number,
)


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
    best, protocol = comparison["best"], comparison["protocol"]
    mean = results.mean(best, protocol, AVERAGE) if best in results.methods else None
    return lead_sentence(comparison, mean, decimal).replace("95 %", f"95{UNBROKEN}%")


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
