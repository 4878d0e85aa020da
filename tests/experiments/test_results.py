"""Results: numbers, intervals and comparison are what the cases say."""

import json
from pathlib import Path
from typing import Any

import pytest

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, method_folder
from easyedit_dualedit.experiments.results import (
    compared,
    costs,
    intervals,
    metrics_of,
    missing,
    stored_names,
)
from easyedit_dualedit.files import write_json
from easyedit_dualedit.measure.metrics import AVERAGE

NAMES = ["Good", "Poor", "Broken"]
PLAN = {
    "title": "a run",
    "contenders": {
        "Good": {"reads_label": False, "remarks": []},
        "Poor": {"reads_label": True, "remarks": ["Its scale | was set by hand."]},
        "Broken": {"reads_label": False, "remarks": []},
    },
}
VALUES = {UNEDITED: (0.0, 1.0), "Good": (1.0, 0.9), "Poor": (0.5, 0.2)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, (mean, locality) in VALUES.items():
        folder = method_folder(tmp_path, name)
        write_json(folder / "run.json", {"name": name})
        for index in range(10):
            values = {"reliability": mean, "text_locality": locality if index else 1.0}
            case = {
                "index": index,
                "values": {"generate": values, "visedit": values},
                "stored_bytes": 1500,
                "seconds": {"edit": 0.5, "forward": 9.0, "pair": [0.1, 0.25]},
            }
            write_json(folder / "cases" / f"{index:05d}.json", case)
        write_json(
            folder / "making.json",
            {"trained_parameters": 1234, "making_seconds": 2.0, "peak_memory_bytes": 2**20},
        )
    broken = method_folder(tmp_path, "Broken")
    write_json(broken / "run.json", {"name": "Broken"})
    write_json(broken / "failed.json", {"error": "ValueError: no such layer"})
    return tmp_path


def collected(run: Path) -> dict[str, Any]:
    metrics = metrics_of(run, NAMES, range(10), PLAN)
    assert metrics is not None
    return metrics


def test_means_and_intervals(run: Path):
    found = collected(run)["methods"]["Poor"]["protocols"]["generate"]
    alike = found["reliability"]
    assert (alike["mean"], alike["n"]) == (50.0, 10)
    assert alike["low"] < 50.0 < alike["high"], "ten alike leave doubt"
    locality = found["text_locality"]
    assert locality["mean"] == pytest.approx(28.0)
    assert locality["low"] < 28.0 < locality["high"]
    assert found[AVERAGE]["mean"] == pytest.approx(39.0)


def test_numbers_are_split_by_what_was_seen_in_training(run: Path):
    targets = {"source": "a test", "seen": [0, 1, 2, 3], "unseen": [*range(4, 10)], "new_word": [9]}
    metrics = metrics_of(run, NAMES, range(10), {**PLAN, "targets": targets})
    assert metrics is not None
    assert metrics["targets"] == {"source": "a test", "seen": 4, "unseen": 6, "new_word": 1}
    for name, (mean, _) in VALUES.items():
        found = metrics["methods"][name]["by_target"]["visedit"]
        assert {group: values["reliability"]["n"] for group, values in found.items()} == {
            "seen": 4,
            "unseen": 6,
            "new_word": 1,
        }
        assert found["unseen"]["reliability"]["mean"] == 100 * mean
    assert "by_target" not in metrics["methods"]["Broken"]
    absent = metrics_of(run, NAMES, range(10), {**PLAN, "targets": {"absent": "why"}})
    assert absent is not None and absent["targets"] == {"absent": "why"}
    assert "by_target" not in absent["methods"]["Good"]
    assert "targets" not in collected(run)


def test_a_method_that_failed_is_a_row_that_says_why(run: Path):
    metrics = collected(run)
    broken = metrics["methods"]["Broken"]
    assert (broken["status"], broken["error"]) == ("failed", "ValueError: no such layer")


def test_nothing_is_collected_while_cases_are_missing(run: Path):
    (method_folder(run, "Good") / "cases" / "00004.json").unlink()
    assert metrics_of(run, NAMES, range(10), PLAN) is None
    assert missing(run, NAMES, range(10)) == {"Good": 1}


def test_the_best_is_compared_with_the_next_pair_by_pair(run: Path):
    found = collected(run)["comparison"]
    assert (found["best"], found["runner_up"], found["protocol"]) == ("Good", "Poor", "generate")
    expected = (1.0 + (1.0 + 0.9 * 9) / 10) / 2 - (0.5 + (1.0 + 0.2 * 9) / 10) / 2
    assert found["difference"]["mean"] == pytest.approx(expected * 100)
    assert found["difference"]["low"] <= found["difference"]["mean"] <= found["difference"]["high"]
    assert list(found["against"]) == ["Poor"]


def test_a_variant_is_no_rival():
    averages = {
        "DualEdit": {"generate": [1.0, 1.0]},
        "DualEdit, cosine gate": {"generate": [1.0, 0.9]},
        "MEND": {"generate": [0.5, 0.7]},
    }
    found = compared(averages)
    assert found is not None
    assert (found["runner_up"], found["rival"]) == ("DualEdit, cosine gate", "MEND")
    assert found["difference"]["mean"] == pytest.approx(5.0)
    assert found["against"]["MEND"]["mean"] == pytest.approx(40.0)


def test_the_unedited_model_is_no_method_to_compare():
    averages = {UNEDITED: {"generate": [1.0, 1.0]}, "A": {"generate": [0.1, 0.2]}}
    assert compared(averages) is None


def test_portability_counts_the_cases_that_have_it_and_has_no_average():
    cases = [
        {"values": {"generate": {"reliability": 1.0}}},
        {"values": {"portability": {"exact_match": 1.0, "token_accuracy": 0.5}}},
    ]
    found = intervals([{"values": {**cases[0]["values"], **cases[1]["values"]}}, cases[0]])
    assert found["portability"]["exact_match"]["n"] == 1
    assert set(found["portability"]) == {"exact_match", "token_accuracy"}
    assert found["generate"]["reliability"]["n"] == 2


def test_nothing_is_compared_where_no_protocol_has_an_average():
    averages = {name: {"binding": [1.0, 0.0], "portability": [1.0]} for name in ("A", "B")}
    assert compared(averages) is None


def test_costs_are_beside_those_of_the_unedited_model(run: Path):
    found = costs(run, NAMES, range(10))
    assert found["Good"]["forward_overhead"] == pytest.approx(2.5)
    assert found["Broken"]["seconds_per_edit"] is None
    assert (found["Good"]["trained_parameters"], found["Good"]["bytes_per_edit"]) == (1234, 1500)


def test_numbers_hold_nothing_that_a_second_run_would_change(run: Path):
    first = json.dumps(collected(run))
    for path in run.glob("methods/*/cases/*.json"):
        case = json.loads(path.read_text())
        case["seconds"] = {"edit": 9.0, "forward": 9.0, "pair": [1.0, 9.0]}
        path.write_text(json.dumps(case))
    assert json.dumps(collected(run)) == first


def test_names_come_from_the_folders(run: Path):
    assert sorted(stored_names(run)) == sorted(NAMES)


def test_a_method_that_was_stopped_before_it_began_is_no_method_yet(run: Path):
    before = stored_names(run)
    begun = method_folder(run, "Begun")
    begun.mkdir()
    assert stored_names(run) == before
    (begun / "cases").mkdir()
    with pytest.raises(DataError, match="has no run.json"):
        stored_names(run)
