"""Shards: put together they are the whole run, and what does not belong together is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import contender, contents, plan_of
from tiny_data import write_data

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.experiments.benchmark import run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import failure, method_folder
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


def shard(records: list[Record], folder: Path, place: int, **options: Any) -> Path:
    """Return the folder of one of two shards, whose cases know the pictures that they show."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text('{"version": 1}')
    shown = {record.index: f"digest {record.index}" for record in records}
    plan = plan_of(records, folder.parent, shard=(place, 2), shown=shown)
    run_benchmark(plan, [contender("Shaken", **options)], folder)
    return folder


def test_merging_again_changes_nothing(records: list[Record], tmp_path: Path):
    shards = [shard(records, tmp_path / name, place) for place, name in enumerate("ab")]
    whole = tmp_path / "whole"
    merge(shards, whole)
    first = {path: path.read_bytes() for path in whole.rglob("*.json")}
    assert json.loads((method_folder(whole, "Shaken") / "cases" / "00000.json").read_text())[
        "pictures"
    ]
    merge([*shards, whole], whole)
    assert {path: path.read_bytes() for path in whole.rglob("*.json")} == first
    # Made by a version that wrote no digest.
    path = method_folder(tmp_path / "a", "Shaken") / "cases" / "00000.json"
    case = json.loads(path.read_text())
    path.write_text(json.dumps({key: case[key] for key in case if key != "pictures"}))
    merge(shards, whole)
    path.write_text(json.dumps({**case, "pictures": "of other pictures"}))
    with pytest.raises(DataError, match="differs from the case"):
        merge(shards, whole)


def test_a_method_that_was_mended_is_not_left_failed(records: list[Record], tmp_path: Path):
    whole, first = tmp_path / "whole", shard(records, tmp_path / "a", 0, fails_at=2)
    second = shard(records, tmp_path / "b", 1)
    merge([first, second], whole)
    assert failure(whole, "Shaken") == "ValueError: cannot be edited"
    merge([second], whole)
    assert failure(whole, "Shaken") is None, "of the folders named, none says that it failed"
    merge([first, second], whole)
    before = tmp_path / "before"
    shutil.copytree(first, before)
    shard(records, first, 0)
    merge([before, first, second], whole)
    assert failure(whole, "Shaken") is None
    assert len(contents(whole)) == 6
