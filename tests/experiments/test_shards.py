"""Shards: put together they are the whole run, and what does not belong together is refused."""

import json
from pathlib import Path

import pytest
from tiny_benchmark import contender, contents, plan_of
from tiny_data import write_data

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.experiments.benchmark import run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import method_folder
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.experiments.shards import merge


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 3), tmp_path / "data")


@pytest.fixture
def plan(records: list[Record], tmp_path: Path) -> Plan:
    return plan_of(records, tmp_path)


def test_shards_merge_to_the_unsharded_run(records: list[Record], tmp_path: Path):
    whole = tmp_path / "whole"
    for folder in (whole, tmp_path / "a", tmp_path / "b", tmp_path / "both"):
        folder.mkdir()
        (folder / "run.json").write_text('{"version": 1}')
    methods = [contender("Shaken"), contender("Other")]
    run_benchmark(plan_of(records, tmp_path), methods, whole)
    run_benchmark(plan_of(records, tmp_path, shard=(0, 2)), methods, tmp_path / "a")
    run_benchmark(plan_of(records, tmp_path, shard=(1, 2)), methods, tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 6
    method_folder(tmp_path / "a", "Stopped before it began").mkdir()
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(whole)
    assert not method_folder(tmp_path / "merged", "Stopped before it began").exists()
    for shard in ((0, 2), (1, 2)):
        run_benchmark(plan_of(records, tmp_path, shard=shard), methods, tmp_path / "both")
    assert contents(tmp_path / "both") == contents(whole)


def test_what_does_not_belong_together_is_not_merged(plan: Plan, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no run"):
        merge([tmp_path / "none"], tmp_path / "merged")
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "evaluated" / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="there is no methods"):
        merge([tmp_path / "evaluated"], tmp_path / "merged")
    for name, version in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"version": version}))
        run_benchmark(plan, [contender("Shaken")], tmp_path / name)
    with pytest.raises(ConfigError, match="version was 1 and is 2"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    path = method_folder(tmp_path / "c", "Shaken") / "cases" / "00001.json"
    case = json.loads(path.read_text())
    case["answers"]["reliability"] = "other"
    path.write_text(json.dumps(case))
    with pytest.raises(DataError, match="differs from the case"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "merged")
