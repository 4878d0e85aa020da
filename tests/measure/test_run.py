"""Runs on disk: files are whole or absent, and other settings do not mix."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.files import write_json
from easyedit_dualedit.measure.metrics import summary
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.measure.run import (
    METRICS_FILE,
    QUERIES_FOLDER,
    SETTINGS_FILE,
    Run,
    clear_queries,
)
from easyedit_dualedit.measure.target_split import TargetSplit

SETTINGS = {"records": 3, "methods": ["unedited"], "nested": {"gate": None, "lr": 1e-4}}


def case_of(value: float, names: tuple[str, ...] = ("unedited",)) -> dict[str, Any]:
    values = {protocol: dict.fromkeys(METRICS, value) for protocol in EVALUATION_PROTOCOLS}
    return {"methods": {name: {"values": values} for name in names}}


def one_line(caught: pytest.ExceptionInfo[Exception]) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_new_run_writes_its_settings_and_continues_under_them(tmp_path: Path):
    folder = tmp_path / "some" / "run"
    Run(folder, SETTINGS)
    content = (folder / SETTINGS_FILE).read_bytes()
    assert json.loads(content) == SETTINGS
    # Key order and tuples are no difference: JSON has neither.
    Run(folder, dict(reversed(SETTINGS.items())) | {"methods": ("unedited",)})
    assert (folder / SETTINGS_FILE).read_bytes() == content


def test_settings_that_differ_are_told_and_no_others(tmp_path: Path):
    Run(tmp_path, SETTINGS)
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path, SETTINGS | {"nested": {"gate": None, "lr": 1e-3}})
    told = one_line(caught)
    assert "other settings: nested.lr was 0.0001 and is 0.001; choose" in told


def test_cases_are_kept_by_index(tmp_path: Path):
    run = Run(tmp_path, SETTINGS)
    assert run.case(0) is None
    run.store(0, {"index": 0, "text": "é\n☃"})
    run.store(12345, {"index": 12345})
    assert run.case(0) == {"index": 0, "text": "é\n☃"}
    assert Run(tmp_path, SETTINGS).case(12345) == {"index": 12345}
    assert run.case(1) is None
    assert sorted(path.name for path in (tmp_path / "cases").iterdir()) == [
        "00000.json",
        "12345.json",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"records": 4}, "records was 3 and is 4"),
        ({"methods": ["unedited", "DualEdit"]}, "methods was ['unedited'] and is"),
        ({"nested": {"gate": "open", "lr": 1e-4}}, "nested.gate was"),
        ({"added": "x"}, "added was None and is 'x'"),
    ],
)
def test_other_settings_are_refused_by_name_and_nothing_is_touched(
    tmp_path: Path, change: dict[str, Any], told: str
):
    run = Run(tmp_path, SETTINGS)
    run.store(0, case_of(1.0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        Run(tmp_path, SETTINGS | change)
    message = one_line(caught)
    assert told in message
    assert "--fresh" in message
    assert "--name" in message
    assert message.count(" was ") == 1
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after


def test_a_setting_that_is_gone_is_a_difference(tmp_path: Path):
    Run(tmp_path, SETTINGS)
    with pytest.raises(ConfigError, match="records was 3 and is None"):
        Run(tmp_path, {key: value for key, value in SETTINGS.items() if key != "records"})


def test_fresh_removes_the_results_of_a_run_and_nothing_else(tmp_path: Path):
    run = Run(tmp_path, SETTINGS)
    run.store(0, case_of(1.0))
    run.finish([case_of(1.0)])
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "adapters").mkdir()
    other = Run(tmp_path, {"records": 9}, fresh=True)
    assert other.case(0) is None
    assert not (tmp_path / METRICS_FILE).exists()
    assert json.loads((tmp_path / SETTINGS_FILE).read_text()) == {"records": 9}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "adapters").is_dir()


def test_queries_of_a_run_are_removed_and_none_of_another_folder(tmp_path: Path):
    (tmp_path / QUERIES_FOLDER / "some").mkdir(parents=True)
    clear_queries(tmp_path)
    assert (tmp_path / QUERIES_FOLDER / "some").is_dir()
    Run(tmp_path, SETTINGS)
    clear_queries(tmp_path)
    assert not (tmp_path / QUERIES_FOLDER).exists()


def test_fresh_leaves_folders_alone_that_hold_no_run(tmp_path: Path):
    (tmp_path / "cases").mkdir()
    (tmp_path / "cases" / "law.txt").write_text("mine")
    with pytest.raises(ConfigError, match="--name"):
        Run(tmp_path, SETTINGS, fresh=True)
    assert (tmp_path / "cases" / "law.txt").read_text() == "mine"
    assert not (tmp_path / SETTINGS_FILE).exists()


def test_an_interrupted_fresh_start_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Run(tmp_path, SETTINGS).store(0, case_of(1.0))

    def interrupted(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, SETTINGS, fresh=True)
    monkeypatch.undo()
    assert Run(tmp_path, SETTINGS, fresh=True).case(0) is None


@pytest.mark.parametrize("content", [b"", b'{"index": 1', b"\xff\x00", b"[]", b"3"])
@pytest.mark.parametrize("name", ["cases/00001.json", SETTINGS_FILE])
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, name: str, content: bytes):
    run = Run(tmp_path, SETTINGS)
    run.store(1, case_of(1.0))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Run(tmp_path, SETTINGS).case(1)
    message = one_line(caught)
    assert str(tmp_path / name) in message
    assert "remove it" in message
    assert (tmp_path / name).read_bytes() == content


def test_a_case_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path, SETTINGS)
    run.store(0, {"old": True})

    def failing(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", failing)
    for index in (0, 1):
        with pytest.raises(DataError) as caught:
            run.store(index, {"new": True})
        assert "No space left on device" in one_line(caught)
        assert f"{index:05d}.json" in one_line(caught)
    with pytest.raises(DataError):
        run.finish([case_of(1.0)])
    monkeypatch.undo()
    assert run.case(0) == {"old": True}
    assert run.case(1) is None
    assert not (tmp_path / METRICS_FILE).exists()
    run.store(1, {"new": True})
    assert run.case(1) == {"new": True}
    names = sorted(path.name for path in (tmp_path / "cases").iterdir() if path.suffix == ".json")
    assert names == ["00000.json", "00001.json"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "full")])
def test_an_interruption_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
):
    path = tmp_path / "value.json"
    write_json(path, {"old": True})
    real = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        real(self, content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises((KeyboardInterrupt, DataError)):
        write_json(path, {"new": [1, 2, 3]})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": True}
    write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"new": True}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


def test_a_value_that_is_no_json_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "value.json"
    write_json(path, {"old": True})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": True}


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(DataError) as caught:
            Run(folder, SETTINGS)
        assert "cannot write" in one_line(caught)


def test_the_numbers_are_those_of_the_cases_for_each_method(tmp_path: Path):
    names = ("unedited", "DualEdit")
    cases = [case_of(value, names) for value in (0.0, 1.0, 1.0, 0.5)]
    for case in cases:
        case["methods"]["DualEdit"] = case_of(1.0)["methods"]["unedited"]
    metrics = Run(tmp_path, SETTINGS).finish(cases)
    assert list(metrics["methods"]) == list(names)
    expected = {
        metric: found.to_dict()
        for metric, found in summary([dict.fromkeys(METRICS, v) for v in (0, 1, 1, 0.5)]).items()
    }
    for protocol in EVALUATION_PROTOCOLS:
        assert metrics["methods"]["unedited"]["protocols"][protocol] == expected
        perfect = metrics["methods"]["DualEdit"]["protocols"][protocol]
        # Four of four leave doubt: Wilson.
        assert all(value["mean"] == 100.0 > value["low"] > 50 for value in perfect.values())
    content = (tmp_path / METRICS_FILE).read_bytes()
    Run(tmp_path, SETTINGS).finish(cases)
    assert (tmp_path / METRICS_FILE).read_bytes() == content
    assert "NaN" not in content.decode()


def test_numbers_are_split_by_what_was_seen_in_training_where_that_is_known(tmp_path: Path):
    cases = [{**case_of(value), "index": index} for index, value in enumerate((0.0, 1.0, 1.0))]
    split = TargetSplit("known from a test", (1, 2), (0,), ())
    metrics = Run(tmp_path, SETTINGS).finish(cases, split)
    assert metrics["targets"] == {"source": "known from a test", "seen": 2, "unseen": 1} | {
        "new_word": 0
    }
    groups = metrics["methods"]["unedited"]["by_target"]["generate"]
    assert groups["seen"]["reliability"]["mean"] == 100.0
    assert groups["unseen"]["reliability"] == {"mean": 0.0, "low": 0.0} | {
        "high": pytest.approx(79.3, abs=0.1),
        "n": 1,
    }
    absent = Run(tmp_path, SETTINGS).finish(cases, "nobody knows")
    assert absent["targets"] == {"absent": "nobody knows"}
    assert "by_target" not in absent["methods"]["unedited"]
    assert "targets" not in Run(tmp_path, SETTINGS).finish(cases)


def test_protocols_of_some_records_count_those_that_have_them(tmp_path: Path):
    cases = [case_of(1.0) for _ in range(3)]
    cases[1]["methods"]["unedited"]["values"]["binding"] = {"text_untouched": 1.0}
    cases[2]["methods"]["unedited"]["values"]["binding"] = {
        "text_untouched": 0.0,
        "beside_untouched": 1.0,
    }
    found = Run(tmp_path, SETTINGS).finish(cases)["methods"]["unedited"]["protocols"]
    assert set(found) == {*EVALUATION_PROTOCOLS, "binding"}
    assert {name: (value["mean"], value["n"]) for name, value in found["binding"].items()} == {
        "text_untouched": (50.0, 2),
        "beside_untouched": (100.0, 1),
    }
