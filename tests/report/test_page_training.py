"""The page's layers and curves: which lines are drawn, where, and what is kept for it in a run."""

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, tostring

import pytest

from easyedit_dualedit.commands.benchmark_background import background_in, keep_background
from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.report.page.lines import Line, line_chart
from easyedit_dualedit.report.page.training import training_section


def value(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1.0, "high": mean + 1.0, "n": 8}


LAYERS = {
    "layers": [
        {
            "layer": layer,
            **{
                part: {"kl": value(3.0 + layer), "flips": value(50.0 - layer)}
                for part in ("vision", "text", "both")
            },
        }
        for layer in range(4)
    ],
    "proposal": {"text_layer": 1, "vision_layer": 2},
}


def curves() -> list[dict[str, Any]]:
    gated = {"all": dict.fromkeys(METRICS, 0.75)}
    lines: list[dict[str, Any]] = []
    for step in (10, 20):
        loss = {"total": 1.0 / step}
        lines.append({"step": step, "part": "training", "loss": loss})
        validation = {"step": step, "part": "validation", "loss": loss, "gate": "learned"}
        lines.append({**validation, "gated": gated, "is_best": step == 20})
    return lines


def points(figure: Element, name: str) -> list[tuple[float, float]]:
    """Return where a line of a figure is drawn."""
    (group,) = [g for g in figure.iter("g") if g.findtext("title") == name]
    drawn = group.find("polyline")
    assert drawn is not None
    return [tuple(map(float, point.split(","))) for point in drawn.get("points", "").split()]


def test_lines_stand_where_their_values_are():
    lines = [Line("rising", [(0, 0.0), (1, 5.0), (2, 10.0)], [(0.0, 1.0), (4.0, 6.0), (9.0, 10.0)])]
    figure = line_chart("Rise", lines, "layer", marks={"here": 1.0})
    (x0, y0), (x1, y1), (x2, y2) = points(figure, "rising")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    (mark,) = [each for each in figure.iter("line") if "mark" in (each.get("class") or "")]
    assert float(mark.get("x1", 0)) == x1
    assert len(figure.findall(".//polygon")) == 1
    assert [key.text for key in figure.iter("li")] == ["rising", "here: 1"]
    (drawing,) = figure.iter("svg")
    assert drawing.get("aria-label") == "Rise: rising from 0 to 10"


def test_values_of_a_logarithmic_axis_are_positive():
    lines = [Line("loss", [(1, 1.0), (2, 0.0), (3, 0.1), (4, float("nan")), (5, 0.01)])]
    drawn = points(line_chart("Loss", lines, "step", is_log=True), "loss")
    assert len(drawn) == 3
    assert drawn[1][1] - drawn[0][1] == pytest.approx(drawn[2][1] - drawn[1][1], abs=0.2)
    empty = line_chart("Loss", [Line("none", [])], "step")
    assert "nothing" in tostring(empty, encoding="unicode")


def test_the_section_shows_what_there_is():
    assert training_section({"title": "a benchmark"}) == []
    shown = training_section({"layers": LAYERS, "curves": curves()})
    figures = [figure for part in shown for figure in part.iter("figure")]
    titles = [figure.findtext("figcaption") for figure in figures]
    assert titles == [
        "KL of the answer, nats a token",
        "Answers changed, %",
        "Loss, nats",
        "Validation records, %",
    ]
    assert len(points(figures[0], "vision")) == 4
    assert {key.text for key in figures[0].iter("li")} >= {"vision layer: 2", "text layer: 1"}
    assert len(points(figures[3], "image locality")) == 2
    assert "best: 20" in [key.text for key in figures[2].iter("li")]


def test_a_run_keeps_what_studies_and_adapters_say(tmp_path: Path):
    studies, adapters, run = (tmp_path / name for name in ("locate", "adapters", "run"))
    studies.mkdir()
    (studies / "locate.json").write_text(json.dumps(LAYERS))
    (adapters / "curves").mkdir(parents=True)
    (adapters / "curves" / "curves.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in curves())
    )
    assert background_in(run) == {}
    keep_background(run, adapters, [studies])
    assert background_in(run) == {"layers": LAYERS, "curves": curves()}
    # The parts of a run that are put together.
    keep_background(tmp_path / "whole", None, [run / "background"])
    assert background_in(tmp_path / "whole") == background_in(run)
    with pytest.raises(DataError, match="holds nothing of locate"):
        keep_background(run, None, [tmp_path / "nothing"])
