"""The metrics of a benchmark as the page reads them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.protocols import PROTOCOLS
from easyedit_dualedit.report.page.wording import (
    FAVOURITE,
    ORDER,
    TELLING,
    UNEDITED,
    number,
    ordered,
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
        """Return the methods with the highest mean, as it is shown; the unedited model is none.

        None of a metric that ranks nobody.
        """
        if metric in TELLING:
            return set()
        means = {
            name: round(mean, 1)
            for name in self.methods
            if name != UNEDITED and (mean := self.mean(name, protocol, metric)) is not None
        }
        return {name for name, mean in means.items() if mean == max(means.values())}
