"""The table of hyperparameters: every trial, the chosen one, and what they were tried on."""

from typing import Any

from easyedit_dualedit.report.benchmark import benchmark_markdown
from easyedit_dualedit.report.tuning import tuning_table


def trial(mean: float | None, **settings: Any) -> dict[str, Any]:
    if mean is None:
        return {"settings": settings, "average": None, "error": "ValueError: no [such] rate"}
    average = {"mean": mean, "low": mean - 1.0, "high": mean + 1.0, "n": 20}
    return {"settings": settings, "average": average, "error": None}


TUNING = {
    "trials": 3,
    "validation": 20,
    "methods": {
        "LoRA": {"trials": [trial(50.0), trial(70.0, lr=0.01, rank=8), trial(None)], "chosen": 1},
        "IKE": {"trials": [trial(40.0), trial(30.0, k=4)], "chosen": 0},
    },
}


def test_every_trial_is_a_row_and_the_chosen_one_says_so():
    table = tuning_table({"tuning": TUNING})
    assert table is not None
    assert table.rows == [
        ["LoRA", "as it comes", "50.0 (49.0–51.0)", ""],
        ["LoRA", "lr = 0.01, rank = 8", "70.0 (69.0–71.0)", "chosen"],
        ["LoRA", "as it comes", "failed: ValueError: no [such] rate", ""],
        ["IKE", "as it comes", "40.0 (39.0–41.0)", "chosen"],
        ["IKE", "k = 4", "30.0 (29.0–31.0)", ""],
    ]
    assert list(table.bold or ()) == [1, 3]
    assert "At most 3 trials of each method on 20 records" in table.caption


def test_nothing_is_said_where_nothing_was_chosen():
    assert tuning_table({}) is tuning_table({"tuning": None}) is None
    assert tuning_table({"tuning": {**TUNING, "methods": {}}}) is None


def test_the_report_in_markdown_has_it():
    metrics = {"methods": {}, "comparison": None, "tuning": TUNING}
    assert "| LoRA | lr = 0.01, rank = 8 | 70.0 (69.0–71.0) | chosen |" in benchmark_markdown(
        metrics, {}
    )
