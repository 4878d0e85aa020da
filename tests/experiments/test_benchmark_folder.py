"""A run on disk: names of folders, and what each method cost."""

from pathlib import Path
from statistics import median

import pytest
from forked import started
from tiny_benchmark import contender, plan_of
from tiny_data import write_data

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.experiments.benchmark import run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import (
    UNEDITED,
    cases_of,
    clear_measured,
    costs_of,
    note_making,
    slug,
)
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.files import read_json

_NOTES = 40


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(load_records(write_data(tmp_path / "data", 5), tmp_path / "data"), tmp_path)


def test_what_is_measured_anew_leaves_what_was_trained_and_other_shards(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    trained = tmp_path / "trained" / "something"
    trained.mkdir(parents=True)
    clear_measured(tmp_path)
    assert len(cases_of(tmp_path, "Shaken", range(5))) == 5, "no run's folder is left alone"
    (tmp_path / "run.json").write_text("{}")
    clear_measured(tmp_path, (1, 2))
    kept = [case["index"] for case in cases_of(tmp_path, "Shaken", range(5))]
    assert kept == [0, 2, 4]
    gone = [tmp_path / name for name in ("methods", "tuning", "specificity")]
    for shard, whole in (((0, 1), None), ((0, 2), True)):
        for each in gone:
            each.mkdir(exist_ok=True)
        clear_measured(tmp_path, (1, 2))
        clear_measured(tmp_path, (0, 1), whole=False)
        assert all(each.is_dir() for each in gone), "other parts may be at work with them"
        clear_measured(tmp_path, shard, whole=whole)
        assert trained.is_dir() and not any(each.exists() for each in gone)


def test_costs_are_counted(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    costs = costs_of(tmp_path, "Shaken", range(5))
    assert costs["bytes_per_edit"] == 42
    assert costs["trained_parameters"] == 7
    assert costs["seconds_per_edit"] is not None and costs["seconds_per_edit"] > 0
    pairs = [case["seconds"]["pair"] for case in cases_of(tmp_path, "Shaken", range(5))]
    assert all(len(pair) == 2 and min(pair) > 0 for pair in pairs)
    assert costs["forward_overhead"] == median(edited / plain for plain, edited in pairs)
    assert costs["forward_overhead"] is not None and 0.2 < costs["forward_overhead"] < 5
    assert costs_of(tmp_path, UNEDITED, range(5))["forward_overhead"] == 1.0


def test_of_a_run_in_parts_the_longest_making_is_told(tmp_path: Path):
    note_making(tmp_path, {"making_seconds": 40.0, "peak_memory_bytes": None})
    note_making(tmp_path, {"making_seconds": 2.0, "peak_memory_bytes": 7})
    note_making(tmp_path, {"making_seconds": 0.0, "peak_memory_bytes": None})
    making = read_json(tmp_path / "making.json")
    assert making == {"making_seconds": 40.0, "peak_memory_bytes": 7}
    note_making(tmp_path / "other", {"making_seconds": 1.0, "peak_memory_bytes": None})
    assert read_json(tmp_path / "other" / "making.json") == {
        "making_seconds": 1.0,
        "peak_memory_bytes": None,
    }


def test_a_name_is_also_an_argument():
    assert slug("VisEdit's place") == "visedits-place"
    assert slug("DualEdit, last-token gate") == "dualedit-last-token-gate"


def note_many(folder: Path, shard: int) -> None:
    for place in range(_NOTES):
        seconds = float(3 * place + shard)
        note_making(folder, {"making_seconds": seconds})
        noted = read_json(folder / "making.json") or {}
        assert noted["making_seconds"] >= seconds, "another shard wrote over it"


def test_shards_that_note_what_they_made_at_once_lose_nothing(tmp_path: Path):
    processes = [started(note_many, tmp_path, shard) for shard in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["making.json"]
    assert read_json(tmp_path / "making.json") == {"making_seconds": 3.0 * _NOTES - 1}
