"""Tables by targets seen in training: who is in them, and what is said where there are none."""

from typing import Any

import pytest

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.report.target_split import split_line, split_rows, split_table


def number(mean: float, n: int) -> dict[str, Any]:
    return {"mean": mean, "low": mean - 1.0, "high": mean + 1.0, "n": n}


def group(mean: float, n: int) -> dict[str, Any]:
    return {metric: number(mean, n) for metric in METRICS[:3]}


def metrics_of(seen: int = 30, unseen: int = 12, new_word: int = 5) -> dict[str, Any]:
    counts = {"seen": seen, "unseen": unseen, "new_word": new_word}
    means = {"seen": 90.0, "unseen": 40.0, "new_word": 20.0}
    groups = {name: group(means[name], count) for name, count in counts.items() if count}
    return {
        "methods": {
            "DualEdit": {"by_target": {"generate": groups}},
            "MEND": {"by_target": {"generate": groups}},
            "Broken": {"error": "why"},
        },
        "targets": {"source": "known from a test", **counts},
    }


def test_every_group_has_a_row_for_every_method_with_its_count():
    table = split_table(metrics_of(), "generate")
    assert table is not None
    assert [row[:4] for row in table.rows] == [
        ["seen in training", "30", "DualEdit", "90.0 (89.0–91.0)"],
        ["seen in training", "30", "MEND", "90.0 (89.0–91.0)"],
        ["never seen as a whole", "12", "DualEdit", "40.0 (39.0–41.0)"],
        ["never seen as a whole", "12", "MEND", "40.0 (39.0–41.0)"],
        ["with a word never seen", "5", "DualEdit", "20.0 (19.0–21.0)"],
        ["with a word never seen", "5", "MEND", "20.0 (19.0–21.0)"],
    ]
    assert list(table.lines_after) == [1, 3, 5]
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert split_table(metrics_of(), "specificity") is None


@pytest.mark.parametrize(
    ("counts", "groups"),
    [
        ((42, 0, 0), []),
        ((0, 42, 42), []),
        ((0, 42, 0), []),
        ((0, 42, 2), ["with a word never seen"]),
        ((40, 2, 2), ["seen in training", "never seen as a whole"]),
        ((40, 2, 0), ["seen in training", "never seen as a whole"]),
    ],
)
def test_groups_that_would_repeat_other_numbers_are_left_out(
    counts: tuple[int, int, int], groups: list[str]
):
    table = split_table(metrics_of(*counts), "generate")
    shown = [] if table is None else list(dict.fromkeys(row[0] for row in table.rows))
    assert shown == groups
    total = f"Of 42 targets, {counts[0]} were seen as a whole in training"
    assert split_line(metrics_of(*counts)).startswith(total)


def test_a_line_says_the_counts_or_why_there_are_none():
    assert split_line(metrics_of()) == (
        "Of 42 targets, 30 were seen as a whole in training and 12 were not, 5 of them with a word"
        " never seen (known from a test)."
    )
    absent = {"methods": {}, "targets": {"absent": "nobody knows"}}
    assert split_line(absent) == "No split by targets seen in training: nobody knows."
    assert split_table(absent, "generate") is None
    assert split_line({"methods": {}}) == ""
    assert split_table({"methods": {}}, "generate") is None


def test_rows_hold_every_number_with_all_digits():
    rows = split_rows("DualEdit", metrics_of()["methods"]["DualEdit"])
    assert len(rows) == 9
    assert rows[3] == ["DualEdit", "generate", "reliability", "unseen", 40.0, 39.0, 41.0, 12]
    assert split_rows("Broken", {"error": "why"}) == []
