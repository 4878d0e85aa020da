"""What a run measured, at a terminal: every method and protocol, whatever the texts hold."""

import io
from typing import Any

import pytest
from rich.console import Console

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.report.evaluation import metrics_table, print_report

NAMES = ("unedited", "DualEdit")


def numbers(start: float) -> dict[str, Any]:
    return {
        metric: {"mean": start + place, "low": start + place - 2.0, "high": start + place + 1.0}
        | {"n": 40}
        for place, metric in enumerate((*METRICS, "average"))
    }


def metrics_of(names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        "methods": {
            name: {
                "protocols": {
                    protocol: numbers(10.0 + 30 * row + 10 * place)
                    for place, protocol in enumerate(EVALUATION_PROTOCOLS)
                }
            }
            for row, name in enumerate(names)
        }
    }


def case_of(index: int = 0, text: str = "a kite", names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    return {
        "index": index,
        "queries": {
            metric: {"prompt": f"{metric}? {text}", "image": None, "target": text}
            for metric in METRICS
        },
        "before": {metric: f"before {text}" for metric in METRICS},
        "methods": {
            name: {
                "answers": {metric: f"after {text}" for metric in METRICS},
                "gate": {}
                if name == "unedited"
                else {
                    metric: {"similarity": 0.25, "open": metric in METRICS[:3]}
                    for metric in METRICS
                },
            }
            for name in names
        },
    }


def printed(cases: list[dict[str, Any]], *, method: str = "DualEdit", **options: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=200)
    print_report(console, metrics_of(), cases, method=method, **options)
    return stream.getvalue()


def test_the_table_has_a_row_for_each_protocol_and_method():
    table = metrics_table(metrics_of())
    assert [row[:2] for row in table.rows] == [
        ["generate", "unedited"],
        ["generate", "DualEdit"],
        ["visedit", "unedited"],
        ["visedit", "DualEdit"],
    ]
    assert table.rows[0][2:] == [f"{20 + n}.0 ({18 + n}.0–{21 + n}.0)" for n in range(6)]
    assert table.rows[3][2:] == [f"{40 + n}.0 ({38 + n}.0–{41 + n}.0)" for n in range(6)]
    assert list(table.lines_after) == [1, 3]
    titles = [column.title.replace("\n", " ") for column in table.columns[2:]]
    assert titles == [*(metric.replace("_", " ") for metric in METRICS), "average"]


def test_the_report_says_what_its_protocols_are_and_how_many_edits_it_counts():
    text = printed([case_of(0)])
    assert "generate: free greedy answers" in text
    assert "visedit: the papers' protocol" in text
    assert "40 edits, each made and measured alone" in text


def test_examples_show_prompts_answers_and_the_gate():
    text = printed([case_of(7)])
    assert "edit 7: 'reliability? a kite' -> 'a kite'" in text
    assert text.count("before a kite") == text.count("after a kite") == 5
    assert text.count("open 0.250") == 3
    assert text.count("closed 0.250") == 2
    assert "open" not in printed([case_of(7)], method="unedited")


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (2, [0, 1]), (9, [0, 3, 6])])
def test_examples_are_spread_over_the_cases(count: int, shown: list[int]):
    text = printed([case_of(index) for index in range(count)])
    assert [index for index in range(count) if f"edit {index}:" in text] == shown


@pytest.mark.parametrize("text", ["[/INST]", "[red]", "[bold]a[/bold]", "[1] [link=x]"])
def test_texts_are_shown_as_they_are(text: str):
    shown = printed([case_of(0, text)])
    assert f"before {text}" in shown
    assert f"after {text}" in shown
    assert f"reliability? {text}" in shown


def test_targets_seen_in_training_are_told_from_others():
    metrics = metrics_of()
    group = {metric: {"mean": 12.5, "low": 1.0, "high": 30.0, "n": 8} for metric in METRICS[:3]}
    for method in metrics["methods"].values():
        method["by_target"] = {"generate": {"seen": group, "unseen": group}}
    metrics["targets"] = {"source": "known from a test", "seen": 32, "unseen": 8, "new_word": 1}
    for targets, told in (
        (metrics["targets"], "Of 40 targets, 32 were seen as a whole in training and 8 were not"),
        ({"absent": "nobody [red] knows"}, "in training: nobody [red] knows."),
    ):
        text = io.StringIO()
        console = Console(file=text, width=200)
        print_report(console, metrics | {"targets": targets}, [case_of()], method="DualEdit")
        assert told in text.getvalue()
        assert ("never seen as a whole" in text.getvalue()) == ("absent" not in targets)


def test_a_protocol_of_some_records_has_a_table_of_its_own_and_is_split():
    metrics = metrics_of()
    number = {"mean": 75.0, "low": 60.0, "high": 90.0, "n": 12}
    for method in metrics["methods"].values():
        method["protocols"]["binding"] = {"picture_old": number}
        groups = {"seen": {"picture_old": number}, "unseen": {"picture_old": number}}
        method["by_target"] = {"binding": groups}
    metrics["targets"] = {"source": "a test", "seen": 12, "unseen": 12, "new_word": 0}
    shown = Console(width=200, record=True, file=io.StringIO())
    print_report(shown, metrics, [case_of()], method="DualEdit")
    text = " ".join(shown.export_text().split())
    assert "binding: percent, mean and 95 % interval" in text
    assert "binding, by whether the target was seen in training" in text
    assert "(12 edits)" in text
    assert "portability" not in text
