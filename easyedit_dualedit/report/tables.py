"""Shows results at a terminal: the table of metrics and examples of edits."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easyedit_dualedit.experiments.ablate import COLUMNS
from easyedit_dualedit.experiments.layer_probe import ATTENTION, NOISED
from easyedit_dualedit.measure.metrics import AVERAGE
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS

_TITLES = {
    "reliability": "reliability",
    "text_generality": "text\ngenerality",
    "image_generality": "image\ngenerality",
    "text_locality": "text\nlocality",
    "image_locality": "image\nlocality",
    AVERAGE: "average",
    "RI": "RI",
    "NI": "NI",
    "CI": "CI",
}
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
    table = Table(title="Percent, mean ± half of the bootstrap 95 % interval")
    table.add_column("protocol")
    table.add_column("method")
    first = next(iter(metrics["methods"].values()))["protocols"][EVALUATION_PROTOCOLS[0]]
    columns = [metric for metric in _TITLES if metric in first]
    for metric in columns:
        table.add_column(_TITLES[metric], justify="right")
    for protocol in reversed(EVALUATION_PROTOCOLS):
        for name, method in metrics["methods"].items():
            values = method["protocols"][protocol]
            cells = [_cell(values[metric]) for metric in columns]
            table.add_row(protocol, name, *cells)
        table.add_section()
    return table


def locate_table(found: Mapping[str, Any]) -> Table:
    """Return the table of what `locate` found: a row for each layer."""
    count = found["layers"][0]["vision"]["kl"]["n"]
    table = Table(title=f"Change of the answer with noise at a layer, mean of {count} samples")
    table.add_column("layer", justify="right")
    for modality in NOISED:
        table.add_column(f"{modality}\nKL, nats", justify="right")
        table.add_column(f"{modality}\nchanged, %", justify="right")
    for part in ATTENTION:
        table.add_column(f"attention to\n{part}, %", justify="right")
    for entry in found["layers"]:
        cells = [str(entry["layer"])]
        for modality in NOISED:
            kl, flips = entry[modality]["kl"], entry[modality]["flips"]
            cells += [f"{kl['mean']:.3f} ±{(kl['high'] - kl['low']) / 2:.3f}", _cell(flips)]
        shares = entry.get("attention")
        cells += [_cell(shares[part]) if shares else "" for part in ATTENTION]
        table.add_row(*cells)
    return table


def ablation_table(rows: Sequence[Mapping[str, Any]], protocol: str = "generate") -> Table:
    """Return the table of an ablation under one protocol: a row for each variant and gate."""
    table = Table(title=f"{protocol}: percent, mean ± half of the bootstrap 95 % interval")
    for title in ("variant", "gate", "layers"):
        table.add_column(title)
    for column in COLUMNS:
        table.add_column(_TITLES[column], justify="right")
    for row in rows:
        values = row["protocols"][protocol]
        layers = f"{row['text_layer']}, {row['vision_layer']}"
        cells = [_cell(values[column]) for column in COLUMNS]
        table.add_row(row["variant"], row["gate"], layers, *cells)
    return table


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
    console.print(metrics_table(metrics))
    for explanation in _EXPLANATIONS.values():
        console.print(explanation, style="dim")
    if "RI" in next(iter(metrics["methods"].values()))["protocols"]["generate"]:
        console.print(_SPECIFICITY, style="dim")
    console.print(f"{count} edits, each made and measured alone\n", style="dim")
    for case in cases[:: max(1, len(cases) // examples)][:examples]:
        console.print(_example(case, method))


def _cell(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.1f} ±{(value['high'] - value['low']) / 2:.1f}"


def _example(case: Mapping[str, Any], method: str) -> Table:
    request = case["queries"]["reliability"]
    table = Table(
        title=Text(f"edit {case['index']}: {request['prompt']!r} -> {request['target']!r}"),
        title_justify="left",
    )
    for column in ("query", "prompt", "picture", "before", "after", "gate"):
        table.add_column(column)
    found = case["methods"][method]
    for metric in case["queries"]:
        query = case["queries"][metric]
        gate = found["gate"].get(metric)
        shown = "" if gate is None else f"{'open' if gate['open'] else 'closed'}"
        similarity = "" if gate is None else f" {gate['similarity']:.3f}"
        table.add_row(
            metric.replace("_", " "),
            Text(query["prompt"]),
            Text(query["image"] or "-"),
            Text(case["before"][metric]),
            Text(found["answers"][metric]),
            shown + similarity,
        )
    return table
