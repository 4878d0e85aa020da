"""The benchmark: every method alone, every case stored, a stopped or shared run the same."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import write_data
from tiny_models import tiny_llava

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.experiments.benchmark import (
    UNEDITED,
    Plan,
    cases_of,
    costs_of,
    failure,
    merge,
    method_folder,
    run_benchmark,
    slug,
)
from easyedit_dualedit.measure.contender import Bench, Contender, Edited
from easyedit_dualedit.model.inputs import Query

PROTOCOLS = ("generate", "visedit", "easyedit")


class Shaken:
    """Adds noise to the head while an edit is in force: another draw for each edit."""

    trained_parameters = 7

    def __init__(self, bench: Bench, *, fails_at: int | None = None, leaks: bool = False):
        self._model, _ = bench.load()
        self._fails_at = fails_at
        self._leaks = leaks

    @contextmanager
    def edit(self, record: Record) -> Iterator[Edited]:
        if record.index == self._fails_at:
            raise ValueError("cannot be\nedited")
        head = self._model.lm_head.weight
        saved = head.detach().clone()
        with torch.no_grad():
            head.add_(torch.randn_like(head))
        yield Edited(self._model, 40 + record.index)
        with torch.no_grad():
            head.copy_(saved)


def contender(name: str, **options: Any) -> Contender:
    return Contender(name, partial(Shaken, **options))


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 5), tmp_path / "data")


@pytest.fixture
def plan(records: list[Record], tmp_path: Path) -> Plan:
    return plan_of(records, tmp_path)


def plan_of(records: list[Record], folder: Path, **changes: Any) -> Plan:
    def load() -> tuple[Any, Any]:
        tiny = tiny_llava(seed=4)
        return tiny.model, tiny.processor

    return Plan("tiny", load, records, PROTOCOLS, images=folder / "data", **changes)


def contents(folder: Path) -> dict[str, Any]:
    """Return every case of a run but for its times."""
    found = {}
    for path in sorted(folder.glob("methods/*/cases/*.json")):
        case = json.loads(path.read_text())
        case.pop("seconds")
        found[str(path.relative_to(folder))] = case
    return found


def test_every_method_has_a_case_for_every_record(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("First"), contender("Second, other")], tmp_path / "run")
    assert len(contents(tmp_path / "run")) == 15
    for name in (UNEDITED, "First", "Second, other"):
        cases = cases_of(tmp_path / "run", name, range(5))
        assert [case["index"] for case in cases] == list(range(5))
        assert all(set(case["values"]) == set(PROTOCOLS) for case in cases)
    unedited = cases_of(tmp_path / "run", UNEDITED, [1])[0]
    assert unedited["queries"]["reliability"]["image"] == "1.png"
    assert set(unedited["queries"]) == set(METRICS)


def test_locality_compares_with_the_unedited_model(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    unedited, shaken = (cases_of(tmp_path, name, range(5)) for name in (UNEDITED, "Shaken"))
    for before, after in zip(unedited, shaken, strict=True):
        assert before["values"]["generate"]["text_locality"] == 1.0
        for metric in ("text_locality", "image_locality"):
            same = before["answers"][metric] == after["answers"][metric]
            assert after["values"]["generate"][metric] == float(same)
    assert any(case["values"]["generate"]["image_locality"] < 1.0 for case in shaken)


def test_a_method_that_fails_says_why_and_the_next_one_runs(plan: Plan, tmp_path: Path):
    broken = Contender("Broken", lambda _bench: 1 / 0)
    run_benchmark(plan, [broken, contender("Late", fails_at=3), contender("Good")], tmp_path)
    assert failure(tmp_path, "Broken") == "ZeroDivisionError: division by zero"
    assert failure(tmp_path, "Late") == "ValueError: cannot be edited"
    assert failure(tmp_path, "Good") is None
    assert len(cases_of(tmp_path, "Good", range(5))) == 5
    # Once it is mended, it is tried again, and what there is of it is kept.
    run_benchmark(plan, [contender("Late")], tmp_path)
    assert failure(tmp_path, "Late") is None
    assert len(cases_of(tmp_path, "Late", range(5))) == 5


def test_a_stopped_run_comes_out_as_an_unbroken_one(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_benchmark(plan, [contender("Shaken"), contender("Other")], tmp_path / "whole")
    for stop in (0, 2, 3, 4, 4):
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


def test_shards_merge_to_the_unsharded_run(records: list[Record], tmp_path: Path):
    whole = tmp_path / "whole"
    for folder in (whole, tmp_path / "a", tmp_path / "b", tmp_path / "both"):
        folder.mkdir()
        (folder / "run.json").write_text('{"version": 1}')
    methods = [contender("Shaken"), contender("Other")]
    run_benchmark(plan_of(records, tmp_path), methods, whole)
    run_benchmark(plan_of(records, tmp_path, shard=(0, 2)), methods, tmp_path / "a")
    run_benchmark(plan_of(records, tmp_path, shard=(1, 2)), methods, tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 9
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(whole)
    for shard in ((0, 2), (1, 2)):
        run_benchmark(plan_of(records, tmp_path, shard=shard), methods, tmp_path / "both")
    assert contents(tmp_path / "both") == contents(whole)


def test_what_does_not_belong_together_is_not_merged(plan: Plan, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no run"):
        merge([tmp_path / "none"], tmp_path / "merged")
    for name, version in (("a", 1), ("b", 2), ("c", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"version": version}))
        run_benchmark(plan, [contender("Shaken")], tmp_path / name)
    with pytest.raises(ConfigError, match="version was 1 and is 2"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    path = method_folder(tmp_path / "c", "Shaken") / "cases" / "00003.json"
    case = json.loads(path.read_text())
    case["answers"]["reliability"] = "other"
    path.write_text(json.dumps(case))
    with pytest.raises(DataError, match="differs from the case"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "merged")


def test_other_settings_are_refused(records: list[Record], tmp_path: Path):
    run_benchmark(plan_of(records, tmp_path), [contender("Shaken")], tmp_path)
    changed = plan_of(records, tmp_path, settings={"shaken": {"rate": 3}})
    with pytest.raises(ConfigError, match="rate"):
        run_benchmark(changed, [contender("Shaken")], tmp_path)


def test_names_must_differ(plan: Plan, tmp_path: Path):
    for names in (("A b", "a-b"), ("unedited", "x")):
        with pytest.raises(ConfigError, match="named once"):
            run_benchmark(plan, [contender(name) for name in names], tmp_path)


def test_costs_are_counted(plan: Plan, tmp_path: Path):
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    costs = costs_of(tmp_path, "Shaken", range(5))
    assert costs["bytes_per_edit"] == 42
    assert costs["trained_parameters"] == 7
    assert costs["seconds_per_edit"] is not None and costs["seconds_per_edit"] > 0
    assert costs["forward_overhead"] is not None and 0.2 < costs["forward_overhead"] < 5
    assert costs_of(tmp_path, UNEDITED, range(5))["forward_overhead"] == 1.0


def test_questions_of_specificity_are_asked(records: list[Record], tmp_path: Path):
    close = {record.index: {"no_image": Query("What is it?", None, "one")} for record in records}
    base = plan_of(records, tmp_path, close=close)
    plan = Plan(**{**vars(base), "protocols": ("specificity",)})
    run_benchmark(plan, [contender("Shaken")], tmp_path)
    (case,) = cases_of(tmp_path, "Shaken", [0])
    assert set(case["values"]) == {"specificity"}
    assert "no_image" in case["answers"]


def test_a_name_is_also_an_argument():
    assert slug("VisEdit's place") == "visedits-place"
    assert slug("DualEdit, last-token gate") == "dualedit-last-token-gate"
