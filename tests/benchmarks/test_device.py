"""The trials of a device pass on a processor, and one that fails is told and ends no other."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import device
from benchmarks.clock import Clock
from benchmarks.page import folder_of
from benchmarks.trials import SkippedError, Trials, require, table


def test_every_trial_passes_on_a_processor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    # Large products, which take seconds of a processor.
    monkeypatch.setattr(Clock, "rate", lambda _clock, _dtype: 100.0)
    page = tmp_path / "performance.md"
    code = device.main(["--device", "cpu", "--tiny", "--write", str(page)])
    assert code == 0, capsys.readouterr().out
    found = json.loads((folder_of(page) / "tiny.json").read_text())
    states = {trial["name"]: trial["state"] for trial in found["trials"]}
    assert list(states.values()).count("passed") >= 30
    assert all(key in found for key in ("times", "forwards", "routing", "peak_mib"))
    assert "closed, among 10000 edits" in page.read_text()
    assert "| a closed gate changes no bit | passed |" in page.read_text()


def test_a_trial_that_fails_ends_no_other(capsys: pytest.CaptureFixture[str]):
    def skipping() -> str:
        raise SkippedError("not here")

    trials = Trials(torch.device("cpu"), 60.0, "tried")
    trials.run_all(
        {
            "tried: an error": lambda: str(1 // 0),
            "tried: another outcome": lambda: require(False, "two | lines\n") or "",
            "tried: elsewhere": skipping,
            "tried: well": lambda: "fine",
            "not asked for": lambda: pytest.fail("it was left out"),
        }
    )
    assert [each.state for each in trials.outcomes] == ["failed", "failed", "skipped", "passed"]
    assert trials.failed
    assert trials.outcomes[0].remark.startswith("ZeroDivisionError: ")
    assert "two \\| lines" in table(trials.to_dicts())
    assert "ZeroDivisionError" in capsys.readouterr().err
    late = Trials(torch.device("cpu"), -1.0)
    late.run("too late", lambda: "fine")
    assert late.outcomes[0].state == "skipped" and not late.failed
