"""Two runs on the same records: what the second does better, what worse, and in which cases."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED
from easyedit_dualedit.experiments.stored_run import Place, StoredCase, StoredRun
from easyedit_dualedit.measure.binding import ASKED, SHARES
from easyedit_dualedit.measure.intervals import Interval, paired_difference
from easyedit_dualedit.measure.metrics import AVERAGE, average
from easyedit_dualedit.measure.nearest import GENERALISATION, PRESERVATION, RIGHT, WRONG
from easyedit_dualedit.measure.protocols import OF_SOME_RECORDS, PROTOCOLS
from easyedit_dualedit.measure.specificity import FAMILIES

logger = logging.getLogger(__name__)

_QUERIES_OF = {**FAMILIES, **{metric: (question,) for metric, question in ASKED.items()}}
"""Metric -> the questions that it is about, where they have other names."""
_BEGIN_OF = {GENERALISATION: WRONG, PRESERVATION: RIGHT}
"""Metric -> what the names of the questions begin with that it is a mean of; the protocol's name
where it is not here."""


@dataclass(frozen=True)
class Difference:
    """One number in both runs, over the cases that both have."""

    method: str
    protocol: str
    metric: str
    first: float
    """Mean in percent."""
    second: float
    change: Interval
    """Second minus first, case by case, in percentage points."""
    better: int
    """Cases with a higher value in the second run."""
    worse: int

    @property
    def verdict(self) -> str:
        """In a word what became of the number; of one that ranks nobody only whether it changed."""
        if not (self.better or self.worse):
            return "same"
        if self.metric in SHARES:
            return "changed"
        if self.change.low > 0:
            return "better"
        return "worse" if self.change.high < 0 else "unsure"


@dataclass(frozen=True)
class ChangedCase:
    """A question that is answered better or worse in the second run."""

    method: str
    place: Place
    question: str
    """What it measures."""
    query: Mapping[str, Any]
    """Prompt, target and picture, as far as the runs keep them."""
    answers: tuple[str, str]
    changes: Mapping[str, float]
    """Protocol -> how much its value rose, -1 to 1."""

    @property
    def is_worse(self) -> bool:
        """Whether it is answered worse under any protocol."""
        return any(change < 0 for change in self.changes.values())


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common, and how they differ."""

    runs: tuple[StoredRun, StoredRun]
    names: Mapping[str, str]
    """Method of the first run -> that of the second which it is compared with."""
    differences: Sequence[Difference]
    changed: Sequence[ChangedCase]
    """Worse ones first."""
    shared: int
    """Cases of the compared methods that both runs have."""
    alone: tuple[int, int]
    """Cases that only the first, and only the second run has."""
    left_out: tuple[Sequence[str], Sequence[str]]
    """Methods and protocols that only the first, and only the second run has."""
    unedited: tuple[int, int]
    """In how many of how many questions the unedited model answers otherwise in the second run."""


def compare(
    first: StoredRun, second: StoredRun, *, method: str | None = None, against: str | None = None
) -> Comparison:
    """Return how the second run differs from the first, over the cases that both have.

    Args:
        first: the yardstick.
        second: what is judged.
        method: the only one of the first run to compare; None compares all that both have.
        against: the method of the second run to compare it with; None is the one of that name.

    Raises:
        DataError: if they are of different kinds, records or protocols, or share no method.
    """
    if first.kind != second.kind:
        raise DataError(
            f"{first.folder} is a run of {first.kind} and {second.folder} one of {second.kind};"
            " give two of one kind"
        )
    _require_same_records(first, second)
    names = _paired(first, second, method, against)
    both = [name for name in first.protocols if name in second.protocols]
    protocols = [name for name in PROTOCOLS if name in both]
    if not protocols:
        raise DataError(
            f"no protocol is in both runs: {first.folder} has {', '.join(first.protocols)},"
            f" {second.folder} has {', '.join(second.protocols)}"
        )
    unlike = _asked_otherwise(first, second)
    differences: list[Difference] = []
    changed: list[ChangedCase] = []
    shared, alone = 0, [0, 0]
    for name, other in names.items():
        one, two = first.methods[name], second.methods[other]
        places = sorted(one.keys() & two.keys())
        shared += len(places)
        alone[0] += len(one) - len(places)
        alone[1] += len(two) - len(places)
        pairs = {}
        for place in places:
            others = unlike.get(place[1], set())
            pairs[place] = (_without(one[place], others), _without(two[place], others))
        label = name if name == other else f"{name} → {other}"
        for protocol in protocols:
            differences += _differences(label, protocol, list(pairs.values()))
        for place, pair in pairs.items():
            changed += _changed(label, place, pair, protocols, first.queries.get(place[1], {}))
    if not shared:
        raise DataError(f"no case is in both {first.folder} and {second.folder}")
    changed.sort(key=lambda case: (not case.is_worse, case.method, case.place))
    of_first, of_second = _left_out(first, second), _left_out(second, first)
    return Comparison(
        (first, second),
        names,
        differences,
        changed,
        shared,
        (alone[0], alone[1]),
        (of_first, of_second),
        _unedited(first, second),
    )


def _require_same_records(first: StoredRun, second: StoredRun) -> None:
    """Refuse runs that asked something else about a record of one number.

    Raises:
        DataError: naming the first such record.
    """
    for index in sorted(first.queries.keys() & second.queries.keys()):
        for question in (name for name in METRICS if name in first.queries[index]):
            both = [run.queries[index].get(question) for run in (first, second)]
            asked = [_asked(one, _shown(both)) for one in both]
            if asked[0] != asked[1]:
                raise DataError(
                    f"the runs are of different records: record {index} asks {asked[0]} in"
                    f" {first.folder} and {asked[1]} in {second.folder}"
                )
    digests = [run.settings.get("data") for run in (first, second)]
    if not (first.queries and second.queries) and digests[0] != digests[1]:
        raise DataError(
            f"the runs are of different records: {first.folder} has the digest {digests[0]},"
            f" {second.folder} has {digests[1]}"
        )


def _asked_otherwise(first: StoredRun, second: StoredRun) -> dict[int, set[str]]:
    """Return for records of both runs what was drawn otherwise: of specificity, say.

    Targets tell nothing here: some are what the unedited model answers.
    """
    unlike: dict[int, set[str]] = {}
    for index in first.queries.keys() & second.queries.keys():
        one, two = first.queries[index], second.queries[index]
        for question in one.keys() & two.keys() - set(METRICS):
            both = (one[question], two[question])
            asked = [_asked({**query, "target": None}, _shown(both)) for query in both]
            if asked[0] != asked[1]:
                unlike.setdefault(index, set()).add(question)
    if unlike:
        logger.warning(
            "%d records have other questions of %s in the second run; those are not compared",
            len(unlike),
            ", ".join(sorted(set().union(*unlike.values()))),
        )
    return unlike


def _without(case: StoredCase, questions: Set[str]) -> StoredCase:
    """Return a case without the values that some of its questions have a part in."""
    if not questions:
        return case
    kept = {
        protocol: {
            metric: value
            for metric, value in values.items()
            if questions.isdisjoint(_asked_for(metric, protocol, case))
        }
        for protocol, values in case.values.items()
    }
    return replace(case, values=kept)


def _asked(query: Mapping[str, Any] | None, shown: bool) -> str:
    """Return what a question was, with its target; pictures may lie in another folder."""
    if query is None:
        return "nothing"
    about = f" about {PurePath(query['image']).name}" if shown else ""
    return f"{query.get('prompt')!r}{about} -> {query.get('target')!r}"


def _shown(queries: Sequence[Mapping[str, Any] | None]) -> bool:
    """Return whether each of some questions names a picture."""
    return all(query is not None and query.get("image") for query in queries)


def _paired(
    first: StoredRun, second: StoredRun, method: str | None, against: str | None
) -> dict[str, str]:
    """Return which methods are compared.

    Raises:
        DataError: if a name is of no method, or no method is in both.
    """
    if method is None and against is not None:
        raise DataError(f"--against {against!r} needs --method, the first run's method")
    if method is not None:
        wanted = (method, against or method)
        for run, name in zip((first, second), wanted, strict=True):
            if name not in run.methods:
                raise DataError(f"{run.folder} has no method {name!r}; it has {_told(run)}")
        return {method: wanted[1]}
    both = [name for name in first.methods if name in second.methods and name != UNEDITED]
    if not both:
        raise DataError(
            f"no method is in both runs: {first.folder} has {_told(first)}, {second.folder} has"
            f" {_told(second)}; give --method and --against"
        )
    return {name: name for name in both}


def _told(run: StoredRun) -> str:
    return "; ".join(name for name in run.methods if name != UNEDITED) or "none"


def _differences(
    method: str, protocol: str, pairs: Sequence[tuple[StoredCase, StoredCase]]
) -> Iterator[Difference]:
    values = [tuple(_with_average(case, protocol) for case in pair) for pair in pairs]
    metrics = dict.fromkeys(name for one, two in values for name in one if name in two)
    for metric in metrics:
        both = [
            (one[metric], two[metric]) for one, two in values if metric in one and metric in two
        ]
        one, two = zip(*both, strict=True)
        yield Difference(
            method,
            protocol,
            metric,
            100 * sum(one) / len(one),
            100 * sum(two) / len(two),
            paired_difference(two, one),
            sum(b > a for a, b in both),
            sum(b < a for a, b in both),
        )


def _with_average(case: StoredCase, protocol: str) -> dict[str, float]:
    """Return the values of a case, and their average where the protocol has one."""
    values = dict(case.values.get(protocol, {}))
    if values and protocol not in OF_SOME_RECORDS:
        values[AVERAGE] = average(values)
    return values


def _changed(
    method: str,
    place: Place,
    pair: tuple[StoredCase, StoredCase],
    protocols: Sequence[str],
    queries: Mapping[str, Mapping[str, Any]],
) -> Iterator[ChangedCase]:
    """Yield the questions of a case whose value changed under any protocol.

    A mean over several questions is told of those whose answers changed.
    """
    one, two = pair
    changes: dict[str, dict[str, float]] = {}
    for protocol in protocols:
        before, after = one.values.get(protocol, {}), two.values.get(protocol, {})
        for metric in before.keys() & after.keys() - set(SHARES):
            change = after[metric] - before[metric]
            if change:
                for question in _questions_of(metric, protocol, pair):
                    changes.setdefault(question, {})[protocol] = change
    asked = dict.fromkeys((*queries, *one.answers))
    for question in [name for name in asked if name in changes]:
        answers = (one.answers.get(question, ""), two.answers.get(question, ""))
        query = queries.get(question, {})
        yield ChangedCase(method, place, question, query, answers, changes[question])


def _questions_of(metric: str, protocol: str, pair: tuple[StoredCase, StoredCase]) -> Sequence[str]:
    one, two = (case.answers for case in pair)
    asked = _asked_for(metric, protocol, pair[0])
    return asked if metric in one else [name for name in asked if one[name] != two.get(name)]


def _asked_for(metric: str, protocol: str, case: StoredCase) -> list[str]:
    """Return the questions of a case that a metric is about."""
    if metric in case.answers:
        return [metric]
    begin = _BEGIN_OF.get(metric, protocol)
    asked = [name for name in _QUERIES_OF.get(metric, ()) if name in case.answers]
    return asked or [name for name in case.answers if name.startswith(f"{begin}_")]


def _left_out(run: StoredRun, other: StoredRun) -> list[str]:
    methods = [name for name in run.methods if name not in other.methods]
    return [*methods, *(name for name in run.protocols if name not in other.protocols)]


def _unedited(first: StoredRun, second: StoredRun) -> tuple[int, int]:
    one, two = (run.methods.get(UNEDITED, {}) for run in (first, second))
    pairs = [
        (answer, two[place].answers[question])
        for place, case in one.items()
        if place in two
        for question, answer in case.answers.items()
        if question in two[place].answers
    ]
    return sum(a != b for a, b in pairs), len(pairs)
