"""Our step and the published code's take turns; its clone is not here, so that a stand-in steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import published
from benchmarks.published import RECIPES, OurSteps, Steps, main, table
from benchmarks.subject import NARROW, PUBLISHED, editor_of, records_of

CHILD = """
import json, sys
told = json.load(open(sys.argv[1]))
(request, rephrase, shown, text, image), *_ = told["records"]
assert request["colour"] == rephrase["colour"] != shown["colour"] and text["colour"] is None
assert request["prompt"].count("<image>") == 1 and "<image>" not in text["prompt"]
assert len(told["records"]) == 5 * told["batch"] and told["shapes"]["hidden"] == {hidden}
print("ready", flush=True)
for place, _line in enumerate(sys.stdin):
    print(json.dumps({{"milliseconds": 100.0 + place, "peak_mib": 500.0 + place}}), flush=True)
"""


def test_both_take_as_many_steps_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    narrow = PUBLISHED.narrow()
    monkeypatch.setattr(published, "PUBLISHED", narrow)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(published, "__file__", str(tmp_path / "published.py"))
    child = tmp_path / "published_child.py"
    child.write_text(CHILD.format(hidden=NARROW), encoding="utf-8")
    given = ["--clone", str(tmp_path), "--older", str(tmp_path), "--steps", "5"]
    main(given)
    theirs, ours = capsys.readouterr().out.splitlines()[2:]
    assert "float32" in theirs and "| 104 | 1.00 | 504 |" in theirs
    assert "ours, float32, new pictures, losses as shipped" in ours
    child.write_text("raise SystemExit(1)", encoding="utf-8")
    with pytest.raises(SystemExit, match="the published code does not start from"):
        main(given)


def test_each_of_our_steps_reads_records_that_none_has_seen():
    narrow = PUBLISHED.narrow()
    seen: list[int] = []
    records = records_of(8, narrow.side)
    steps = OurSteps(editor_of(narrow), RECIPES["shipped"], records)
    losses = steps._step.losses

    def watched(batch, config):  # type: ignore[no-untyped-def]
        seen.extend(record.index for record in batch)
        return losses(batch, config)

    steps._step.losses = watched  # type: ignore[method-assign]
    before = [each.detach().clone() for each in steps._editor.adapters.parameters()]
    steps.take()
    steps.take()
    assert seen == list(range(8))
    after = steps._editor.adapters.parameters()
    assert any(bool((one != two).any()) for one, two in zip(before, after, strict=True))
    frozen = steps._step.frozen
    assert frozen.states.is_closed and frozen.pictures.cache.is_closed, "nothing is kept"


def test_our_model_may_be_of_another_precision(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.dtype] = []

    def measured(_clone, _older, _recipe, steps, dtype):  # type: ignore[no-untyped-def]
        asked.append(dtype)
        return Steps((2.0,) * steps, 1.0), Steps((1.0,) * steps, 1.0)

    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    monkeypatch.setattr(published, "measure", measured)
    main(["--clone", "a", "--older", "b", "--steps", "2", "--dtype", "bfloat16"])
    assert asked == [torch.bfloat16]
    step = OurSteps(
        editor_of(replace(PUBLISHED.narrow(), dtype=torch.bfloat16)),
        RECIPES["shipped"],
        records_of(4, PUBLISHED.narrow().side),
    )
    step.take()
    editor = step._editor
    assert {each.dtype for each in editor.backbone.model.parameters()} == {torch.bfloat16}
    assert {each.dtype for each in editor.adapters.parameters()} == {torch.float32}


def test_the_ratio_is_of_neighbours():
    theirs, ours = Steps((300.0, 200.0, 90.0), 1.0), Steps((100.0, 100.0, 90.0), 2.0)
    assert table(theirs, ours, "published").splitlines()[-1].endswith("| 100 | 2.00 | 2 |")


def test_the_child_stands_alone():
    """It runs beside another transformers, which ours would not import."""
    text = (Path(published.__file__).parent / "published_child.py").read_text(encoding="utf-8")
    imported = [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["import"]]
    imported += [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["from"]]
    assert "torch" in imported
    assert not any(name.startswith(("easyedit_dualedit", "benchmarks")) for name in imported)
