"""The benchmark: every method alone, every case stored, a stopped or shared run the same."""

from pathlib import Path
from typing import Any

import pytest
from tiny_benchmark import MEASURED, contender, contents, plan_of
from tiny_data import write_data

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.experiments.benchmark import run_benchmark
from easyedit_dualedit.experiments.benchmark_folder import UNEDITED, cases_of, failure
from easyedit_dualedit.experiments.plan import Plan
from easyedit_dualedit.measure.contender import Contender
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 3), tmp_path / "data")


@pytest.fixture
def plan(records: list[Record], tmp_path: Path) -> Plan:
    return plan_of(records, tmp_path)


def test_every_method_has_a_case_for_every_record(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("First"), contender("Second, other")], tmp_path / "run")
    assert len(contents(tmp_path / "run")) == 9
    for name in (UNEDITED, "First", "Second, other"):
        cases = cases_of(tmp_path / "run", name, range(3))
        assert [case["index"] for case in cases] == list(range(3))
        assert all(set(case["values"]) == set(MEASURED) for case in cases)
    unedited = cases_of(tmp_path / "run", UNEDITED, [1])[0]
    assert unedited["queries"]["reliability"]["image"] == "1.png"
    assert set(unedited["queries"]) == set(METRICS)


def test_locality_compares_with_the_unedited_model(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    unedited, shaken = (cases_of(tmp_path, name, range(3)) for name in (UNEDITED, "Shaken"))
    for before, after in zip(unedited, shaken, strict=True):
        assert before["values"]["generate"]["text_locality"] == 1.0
        for metric in ("text_locality", "image_locality"):
            same = before["answers"][metric] == after["answers"][metric]
            assert after["values"]["generate"][metric] == float(same)
    assert any(case["values"]["generate"]["image_locality"] < 1.0 for case in shaken)


def test_a_method_that_fails_says_why_and_the_next_one_runs(plan: Plan, tmp_path: Path):
    broken = Contender("Broken", lambda _bench: 1 / 0)
    run_benchmark(plan, [broken, contender("Late", fails_at=2), contender("Good")], tmp_path)
    assert failure(tmp_path, "Broken") == "ZeroDivisionError: division by zero"
    assert failure(tmp_path, "Late") == "ValueError: cannot be edited"
    assert failure(tmp_path, "Good") is None
    assert len(cases_of(tmp_path, "Good", range(3))) == 3
    # Once it is mended, it is tried again, and what there is of it is kept.
    run_benchmark(plan, [contender("Late")], tmp_path)
    assert failure(tmp_path, "Late") is None
    assert len(cases_of(tmp_path, "Late", range(3))) == 3


def test_a_stopped_run_comes_out_as_an_unbroken_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_benchmark(plan, [contender("Shaken"), contender("Other")], tmp_path / "whole")
    for stop in (0, 3):
        stored = 0
        original = __import__("easyedit_dualedit.measure.run", fromlist=["Run"]).Run.store

        def store(self: Any, index: int, case: Any, stop: int = stop, original: Any = original):
            nonlocal stored
            if stored == stop:
                raise KeyboardInterrupt
            stored += 1
            original(self, index, case)

        with monkeypatch.context() as patched:
            patched.setattr("easyedit_dualedit.measure.run.Run.store", store)
            with pytest.raises(KeyboardInterrupt):
                run_benchmark(plan, [contender("Shaken"), contender("Other")], tmp_path / "stopped")
    run_benchmark(plan, [contender("Shaken"), contender("Other")], tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_what_is_done_is_not_done_again(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    forbidden = Contender("Shaken", lambda _bench: pytest.fail("made again"))
    run_benchmark(plan, [forbidden], tmp_path)


def test_other_settings_are_refused(records: list[Record], tmp_path: Path):
    run_benchmark(plan_of(records, tmp_path), [contender("Shaken")], tmp_path)
    changed = plan_of(records, tmp_path, settings={"shaken": {"rate": 3}})
    with pytest.raises(ConfigError, match="rate"):
        run_benchmark(changed, [contender("Shaken")], tmp_path)


def test_names_must_differ(plan: Plan, tmp_path: Path):
    for names in (("A b", "a-b"), ("unedited", "x")):
        with pytest.raises(ConfigError, match="named once"):
            run_benchmark(plan, [contender(name) for name in names], tmp_path)


def test_questions_of_specificity_are_asked(records: list[Record], tmp_path: Path):
    close = {record.index: {"no_image": Query("What is it?", None, "one")} for record in records}
    base = plan_of(records, tmp_path, close=close)
    plan = Plan(**{**vars(base), "protocols": ("specificity",)})
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    (case,) = cases_of(tmp_path, "Shaken", [0])
    assert set(case["values"]) == {"specificity"}
    assert "no_image" in case["answers"]
