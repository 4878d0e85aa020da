"""How adapters came about: what layers do, pairs of them compared, and a training's curves."""

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.experiments.layer_probe import NOISED
from easyedit_dualedit.report.ablation import ablation_table
from easyedit_dualedit.report.markup import Element, element
from easyedit_dualedit.report.page.lines import Line, line_chart
from easyedit_dualedit.report.page.wording import UNBROKEN, metric_name
from easyedit_dualedit.report.training_curves import validation_table


def training_section(metrics: Mapping[str, Any]) -> list[Element]:
    """Return charts and tables of what the run was given: `layers`, `ablation` and `curves`.

    Args:
        metrics: of the page; `layers` is what `locate` wrote, `ablation` what `ablate` did, and
            `curves` the lines of a training. Empty if there is none of them.
    """
    shown: list[Element] = []
    if metrics.get("layers"):
        shown += _layers(metrics["layers"])
    if metrics.get("ablation"):
        table = ablation_table(metrics["ablation"])
        shown += [element("h3", "Pairs of layers, and variants"), table.html(table.title)]
    if metrics.get("curves"):
        shown += _curves(metrics["curves"])
    return shown


def _layers(effects: Mapping[str, Any]) -> list[Element]:
    entries, proposal = effects["layers"], effects["proposal"]
    marks = {f"{part} layer": float(proposal[f"{part}_layer"]) for part in ("vision", "text")}

    def lines(measure: str) -> list[Line]:
        found = []
        for part in NOISED:
            values = [(entry["layer"], entry[part][measure]) for entry in entries]
            points = [(layer, value["mean"]) for layer, value in values]
            found.append(Line(part, points, [(value["low"], value["high"]) for _, value in values]))
        return found

    charts = [
        line_chart("KL of the answer, nats a token", lines("kl"), "decoder layer", marks=marks),
        line_chart("Answers changed, %", lines("flips"), "decoder layer", marks=marks),
    ]
    text = (
        "Noise on the image tokens, on the text tokens and on both, one decoder layer at a time:"
        f" how much the answer changes, with 95{UNBROKEN}% intervals, and the layers that"
    )
    return [
        element("h3", "What each layer does"),
        element("p", f"{text} ", element("code", "locate"), " proposes."),
        element("div", *charts, class_="charts"),
    ]


def _curves(curves: Sequence[Mapping[str, Any]]) -> list[Element]:
    training = [line for line in curves if line["part"] == "training"]
    validation = [line for line in curves if line["part"] == "validation"]
    best = [line["step"] for line in validation if line["is_best"]]
    marks = {"best": float(best[-1])} if best else {}

    def points(lines: Sequence[Any], *way: str, times: float = 1.0) -> list[tuple[float, float]]:
        found = []
        for line in lines:
            value: Any = line
            for name in way:
                value = (value or {}).get(name)
            if isinstance(value, float):
                found.append((float(line["step"]), times * value))
        return found

    losses = [
        Line("training", points(training, "loss", "total")),
        Line("validation", points(validation, "loss", "total")),
    ]
    charts = [line_chart("Loss, nats", losses, "step", marks=marks, is_log=True)]
    table = validation_table([dict(line) for line in curves])
    if table is not None:
        measured = [
            Line(metric_name(name), points(validation, "gated", "all", name, times=100.0))
            for name in METRICS
        ]
        charts.append(line_chart("Validation records, %", measured, "step", marks=marks, top=100.0))
    shown = [element("h3", "The training of the adapters")]
    if table is not None:
        shown.append(element("p", f"{table.title.capitalize()}. {table.caption}".strip()))
    return [*shown, element("div", *charts, class_="charts")]
