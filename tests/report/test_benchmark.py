"""The benchmark's tables say what the numbers are, and why some are missing."""

import csv
import io
from typing import Any

from rich.console import Console

from easyedit_dualedit.report.benchmark import (
    benchmark_csv,
    benchmark_markdown,
    costs_table,
    headline,
    measured_protocols,
    protocol_table,
)
from easyedit_dualedit.report.table import Table


def interval(mean: float) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 1.0, "high": mean + 0.5, "n": 10}


def method(mean: float, *protocols: str, **changes: Any) -> dict[str, Any]:
    values = {"reliability": interval(mean), "text_locality": interval(9.0)}
    values |= {"average": interval(mean / 2)}
    return {
        "status": "done",
        "error": None,
        "reads_label": False,
        "remarks": [],
        "protocols": dict.fromkeys(protocols, values),
    } | changes


METRICS = {
    "methods": {
        "unedited": method(0.0, "generate", "visedit"),
        "Good": method(98.04, "visedit", "generate"),
        "Poor": method(50.0, "generate", reads_label=True, remarks=["Its scale | was set."]),
        "Broken": method(0.0, error="ValueError: no such [red] layer", status="failed"),
    },
    "comparison": {
        "protocol": "generate",
        "best": "Good",
        "runner_up": "Good, cosine gate",
        "rival": "Poor",
        "difference": {"mean": 5.0, "low": 4.0, "high": 6.04},
        "against": {"Poor": {"mean": 40.0, "low": 39.0, "high": 41.0}},
    },
}
COSTS = {
    "Good": {
        "seconds_per_edit": 0.5,
        "forward_overhead": 2.5,
        "peak_memory_bytes": 2**20,
        "trained_parameters": 1234,
        "bytes_per_edit": 1500,
        "making_seconds": 2.0,
    },
    "Broken": {"seconds_per_edit": None},
}


def shown(table: Table) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.for_terminal())
    return console.export_text()


def test_a_row_is_a_method_with_means_and_intervals():
    rows = protocol_table(METRICS, "generate").rows
    assert rows[1] == ["Good", "98.0 (97.0–98.5)", "9.0 (8.0–9.5)", "49.0 (48.0–49.5)"]
    assert protocol_table(METRICS, "visedit").rows[2][1:] == ["not measured"] * 3


def test_a_method_that_failed_is_a_row_that_says_why():
    for text in (shown(protocol_table(METRICS, "generate")), benchmark_markdown(METRICS, {})):
        assert "Broken; failed: ValueError: no such [red] layer" in text
    rows = list(csv.DictReader(io.StringIO(benchmark_csv(METRICS))))
    assert [row["error"] for row in rows if row["method"] == "Broken"] == [
        "ValueError: no such [red] layer"
    ]


def test_a_row_that_reads_the_label_says_so():
    assert "Poor (reads the label)" in shown(protocol_table(METRICS, "generate"))
    assert "| Poor (reads the label) |" in benchmark_markdown(METRICS, {})


def test_the_headline_tells_the_lead_over_the_next_and_over_the_next_that_is_no_variant():
    assert headline(METRICS) == (
        "Good has the highest average under generate: 49.0, which is 5.0 (95 % interval 4.0 to 6.0)"
        " above Good, cosine gate, and 40.0 (95 % interval 39.0 to 41.0) above Poor."
    )
    tie = {**METRICS["comparison"], "difference": {"mean": 0.0, "low": -2.0, "high": 2.0}}
    assert headline({**METRICS, "comparison": tie}) == (
        "Good and Good, cosine gate share the highest average under generate: 49.0 (95 % interval"
        " of 0, -2.0 to 2.0), and 40.0 (95 % interval 39.0 to 41.0) above Poor."
    )
    alone = {**METRICS["comparison"], "runner_up": "Poor"}
    assert headline({**METRICS, "comparison": alone}).endswith("6.0) above Poor.")
    assert "nothing to compare" in headline({"comparison": None})


def test_costs_are_told_in_units():
    assert costs_table(COSTS).rows == [
        ["Good", "0.500", "2.500", "1", "1,234", "1.5", "2.0"],
        ["Broken", *[""] * 6],
    ]


def test_markdown_keeps_protocols_apart_and_tells_how_methods_were_run():
    text = benchmark_markdown(METRICS, COSTS)
    assert text.startswith("**Good has the highest average")
    assert text.index("### generate") < text.index("### visedit") < text.index("### costs")
    assert text.endswith("### how the methods were run\n\n- Poor: Its scale | was set.\n")
    assert "| Good | 0.500 | 2.500 | 1 | 1,234 | 1.5 | 2.0 |\n" in text


def test_csv_has_a_line_for_each_method_protocol_and_metric_with_all_digits():
    rows = list(csv.DictReader(io.StringIO(benchmark_csv(METRICS))))
    assert len(rows) == 3 * (2 + 2 + 1) + 1
    (good,) = (
        row
        for row in rows
        if (row["method"], row["protocol"], row["metric"]) == ("Good", "visedit", "reliability")
    )
    assert [float(good[end]) for end in ("mean", "low", "high", "n")] == [98.04, 97.04, 98.54, 10]


def test_protocols_that_nobody_was_measured_under_have_no_table():
    assert measured_protocols(METRICS) == ["generate", "visedit"]


def test_where_only_some_records_count_the_titles_say_how_many():
    values = {"text_untouched": {**interval(99.0), "n": 7}, "picture_old": interval(20.0)}
    some = {**METRICS["methods"]["Good"], "protocols": {"binding": values}}
    table = protocol_table({**METRICS, "methods": {"Good": some}}, "binding")
    titles = [column.title.replace("\n", " ") for column in table.columns]
    assert titles == ["method", "text untouched (7 edits)", "picture old (10 edits)"]
    assert "arXiv" not in table.caption and "old binding persists" in table.caption


def split_metrics() -> dict[str, Any]:
    groups = {
        "seen": {"reliability": interval(90.0)},
        "unseen": {"reliability": interval(10.0)},
    }
    good = METRICS["methods"]["Good"] | {"by_target": {"generate": groups}}
    targets = {"source": "known from a test", "seen": 6, "unseen": 4, "new_word": 0}
    return METRICS | {"methods": METRICS["methods"] | {"Good": good}, "targets": targets}


def test_markdown_and_csv_tell_targets_seen_in_training_from_others():
    text = benchmark_markdown(split_metrics(), COSTS)
    assert "Of 10 targets, 6 were seen as a whole in training and 4 were not" in text
    assert "#### generate, by whether the target was seen in training" in text
    assert "| never seen as a whole | 10 | Good | 10.0 (9.0–10.5) |" in text
    rows = list(csv.DictReader(io.StringIO(benchmark_csv(split_metrics()))))
    found = {
        row["targets"]: row["mean"]
        for row in rows
        if (row["method"], row["protocol"], row["metric"]) == ("Good", "generate", "reliability")
    }
    assert found == {"all": "98.04", "seen": "90.0", "unseen": "10.0"}
    assert "seen" not in benchmark_markdown(METRICS, COSTS)
