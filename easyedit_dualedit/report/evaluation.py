"""What a run measured, at a terminal: the table of metrics and examples of edits."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS, OF_SOME_RECORDS
from easyedit_dualedit.measure.specificity import FAMILIES
from easyedit_dualedit.report.alike_pictures import alike_table
from easyedit_dualedit.report.benchmark import measured_protocols, protocol_table
from easyedit_dualedit.report.page.wording import counted
from easyedit_dualedit.report.table import Table, mean_and_interval, numbers, texts
from easyedit_dualedit.report.target_split import split_line, split_table

_COLUMNS = (*METRICS, AVERAGE, *FAMILIES)
_EXPLANATIONS = {
    "generate": "generate: free greedy answers to the prompt alone, exact match",
    "visedit": "visedit: the papers' protocol, answer fed in, token accuracy",
}

_SPECIFICITY = (
    "same answer before and after the edit: RI = its text with a random picture, its picture with a"
    " random question; NI = its text without a picture; CI = the other samples most like it"
)


def metrics_table(metrics: Mapping[str, Any]) -> Table:
    """Return the table of a run's metrics: a row for each method and protocol.

    A cell is the mean in percent and half the width of its 95 % interval.
    """
    methods: Mapping[str, Any] = metrics["methods"]
    measured = next(iter(methods.values()))["protocols"][EVALUATION_PROTOCOLS[0]]
    columns = [metric for metric in _COLUMNS if metric in measured]
    rows = [
        [
            protocol,
            name,
            *(mean_and_interval(method["protocols"][protocol][metric]) for metric in columns),
        ]
        for protocol in reversed(EVALUATION_PROTOCOLS)
        for name, method in methods.items()
    ]
    return Table(
        [
            *texts("protocol", "method"),
            *numbers(*(metric.replace("_", "\n") for metric in columns)),
        ],
        rows,
        title="Percent, mean and 95 % interval",
        lines_after=range(len(methods) - 1, len(rows), len(methods)),
    )


def print_report(
    console: Console,
    metrics: Mapping[str, Any],
    cases: Sequence[Mapping[str, Any]],
    *,
    method: str,
    examples: int = 3,
) -> None:
    """Print the table, what its protocols are, and a few edits with answers before and after.

    Args:
        console: where to.
        metrics: what `Run.finish` returned.
        cases: the cases of the run.
        method: whose answers the examples show.
        examples: how many.
    """
    count = next(iter(metrics["methods"].values()))["protocols"]["generate"][AVERAGE]["n"]
    console.print(metrics_table(metrics).for_terminal())
    for explanation in _EXPLANATIONS.values():
        console.print(explanation, style="dim")
    if "RI" in next(iter(metrics["methods"].values()))["protocols"]["generate"]:
        console.print(_SPECIFICITY, style="dim")
    further = [name for name in measured_protocols(metrics) if name in OF_SOME_RECORDS]
    for protocol in further:
        console.print(protocol_table(metrics, protocol).for_terminal())
    for protocol in (*reversed(EVALUATION_PROTOCOLS), *further):
        split = split_table(metrics, protocol)
        if split is not None:
            console.print(split.for_terminal())
    alike = alike_table(cases)
    if alike is not None:
        console.print(alike.for_terminal())
    if split_line(metrics):
        console.print(Text(split_line(metrics), style="dim"))
    console.print(f"{counted(count, 'edit')}, each made and measured alone\n", style="dim")
    for case in cases[:: max(1, len(cases) // examples)][:examples]:
        console.print(_example(case, method).for_terminal(title_on_the_left=True))


def _example(case: Mapping[str, Any], method: str) -> Table:
    request = case["queries"]["reliability"]
    outcome = case["methods"][method]
    rows = []
    for metric, query in case["queries"].items():
        gate = outcome["gate"].get(metric)
        state = "" if gate is None else "open" if gate["open"] else "closed"
        rows.append(
            [
                metric.replace("_", " "),
                query["prompt"],
                query["image"] or "-",
                case["before"][metric],
                outcome["answers"][metric],
                state if gate is None else f"{state} {gate['similarity']:.3f}",
            ]
        )
    return Table(
        texts("query", "prompt", "picture", "before", "after", "gate"),
        rows,
        f"edit {case['index']}: {request['prompt']!r} -> {request['target']!r}",
    )
