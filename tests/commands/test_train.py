"""The command `train`: the gate of trained adapters can be made again without training them."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from workplace import Workplace

from easyedit_dualedit.method.archive import Archive


def parts(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = Archive.load(folder).tensors
    gate = {name: value for name, value in tensors.items() if name.startswith("gate.")}
    return gate, {name: value for name, value in tensors.items() if name not in gate}


def is_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) for name, value in one.items()
    )


def test_a_gate_is_made_again_and_the_adapters_stay(
    work: Workplace, call: Any, caplog: pytest.LogCaptureFixture
):
    changes = {"gate": {"kind": "learned"}, "gate_steps": 3}
    assert call(work.train(**changes, opt="SGD")).code == 0
    assert "opt = 'SGD' is for EasyEdit's trainers; this command takes Adam" in caplog.text
    caplog.clear()
    gate, adapters = parts(work.adapters)
    again = work.folder / "again"
    options = ["--gate-only", "--archive", work.adapters, "--output", again]
    made = call(work.train(*options, **changes))
    assert made.code == 0, made.err
    assert "opt = " not in caplog.text
    assert "training" not in made.err and "learned" in made.out
    assert is_equal(parts(again)[0], gate) and is_equal(parts(again)[1], adapters)
    assert Archive.load(again).training_targets == Archive.load(work.adapters).training_targets
    assert sorted(path.name for path in again.iterdir()) == ["adapters.safetensors", "config.json"]
    # In place, with other settings.
    options = ["--gate-only", "--archive", again, "--output", again]
    assert call(work.train(*options, **changes | {"gate_records": 6})).code == 0
    assert not is_equal(parts(again)[0], gate)
    assert is_equal(parts(again)[1], adapters)


def test_records_that_validate_teach_no_gate(work: Workplace, call: Any):
    changes = {"gate": {"kind": "learned"}, "gate_steps": 3, "val_interval": 2}
    assert call(work.train("--validation", 2, **changes)).code == 0
    again = work.folder / "again"
    options = ["--gate-only", "--archive", work.adapters, "--output", again]
    assert call(work.train(*options, "--validation", 2, **changes)).code == 0
    assert is_equal(parts(again)[0], parts(work.adapters)[0])
    assert call(work.train(*options, "--validation", 0, **changes)).code == 0
    assert not is_equal(parts(again)[0], parts(work.adapters)[0])
    error = call(work.train(*options, "--log", "tensorboard", **changes)).error
    assert "--log goes with a training" in error


def test_a_fresh_training_leaves_nothing_of_the_one_before(work: Workplace, call: Any):
    options = ["--validation", 2, "--fresh"]
    assert call(work.train(*options, gate_steps=0, val_interval=2)).code == 0
    beside = [*("best", "last"), *(f"curves/curves.{end}" for end in ("csv", "png", "jsonl"))]
    held = [name for name in beside if (work.adapters / name).exists()]
    assert {"best", "last", "curves/curves.csv"} <= set(held)
    assert call(work.train("--validation", 0, "--fresh", gate_steps=0)).code == 0
    assert not list((work.adapters / "best").glob("*"))
    assert not list((work.adapters / "last").glob("*"))
    lines = (work.adapters / "curves" / "curves.jsonl").read_text().splitlines()
    assert "validation" not in {json.loads(line)["part"] for line in lines}
    table = work.adapters / "curves" / "curves.csv"
    assert not table.exists() or "validation" not in table.read_text()


@pytest.mark.parametrize("name", ["best", "last"])
def test_adapters_that_the_training_would_write_over_are_not_trained_further(
    name: str, work: Workplace, call: Any
):
    assert call(work.train("--validation", 2, gate_steps=0, val_interval=2)).code == 0
    archive = work.adapters / name
    before = {path.name: path.read_bytes() for path in archive.iterdir()}
    assert before
    refused = call(work.train("--validation", 2, "--archive", archive, "--fresh", gate_steps=0))
    assert refused.code == 2 and f"keeps {name} adapters of its own" in refused.err
    assert {path.name: path.read_bytes() for path in archive.iterdir()} == before


def test_adapters_of_an_archive_are_trained_further(work: Workplace, call: Any):
    assert call(work.train(gate_steps=0)).code == 0
    further = work.folder / "further"
    options = ["--archive", work.adapters, "--output", further]
    assert call(work.train(*options, gate_steps=0, lr=1e-12)).code == 0
    before, after = parts(work.adapters)[1], parts(further)[1]
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)
    made = call(work.train(*options, "--fresh"))
    assert made.code == 0 and "their gate stays" not in made.out
    gate, taught = parts(further)
    kept = call(work.train("--archive", further, "--output", further, gate_steps=0, text_only=0.5))
    assert kept.code == 0 and "their gate stays" in kept.out
    assert is_equal(parts(further)[0], gate) and not is_equal(parts(further)[1], taught)
    assert call(work.train(*options, "--fresh", gate_steps=0)).code == 0
    assert not is_equal(parts(further)[1], parts(work.adapters)[1])
    error = call(work.train(*options, "--fresh", gate_steps=0, text_layer=0, vision_layer=1)).error
    assert "in the archive and 0 in the hyperparameters" in error
    gone = call(
        work.train("--archive", work.folder / "nothing", "--output", further, "--fresh")
    ).error
    assert "but there is nothing" in gone


def test_trained_adapters_are_replaced_only_where_somebody_says_so(work: Workplace, call: Any):
    assert call(work.train(gate_steps=0)).code == 0
    first = parts(work.adapters)[1]
    error = call(work.train(gate_steps=0, lr=3e-3)).error
    assert "holds trained adapters already" in error and "--fresh" in error
    assert is_equal(parts(work.adapters)[1], first)
    # What a stopped training left goes on, or is forgotten.
    (work.adapters / "training.pt").write_bytes(b"of another training")
    assert "training.pt" in call(work.train(gate_steps=0, lr=3e-3)).error
    assert call(work.train("--fresh", gate_steps=0, lr=3e-3)).code == 0
    second = parts(work.adapters)[1]
    assert not is_equal(second, first)
    assert call(work.train("--archive", work.adapters, gate_steps=0)).code == 0
    assert not is_equal(parts(work.adapters)[1], second)
    options = ["--gate-only", "--archive", work.adapters, "--fresh"]
    assert "--fresh goes with a training" in call(work.train(*options)).error


def test_the_recipe_tells_how_many_records_did_validate(work: Workplace, call: Any):
    def same_picture(items: list[dict[str, Any]]) -> None:
        for item in items:
            item["image"] = item["image_rephrase"] = items[0]["image"]

    work.rewrite(same_picture)
    assert call(work.train("--validation", 2, gate_steps=0)).code == 0
    recipe = json.loads((work.adapters / "curves" / "recipe.json").read_text())
    assert recipe["validation_records"] == 0, "one group of records cannot be divided"


def test_a_training_keeps_to_the_memory_that_it_is_given(work: Workplace, call: Any):
    free = call(work.train(gate_steps=3))
    assert free.code == 0 and "training: records at once: 4" in free.err
    size = sum(path.stat().st_size for path in work.model.glob("*.safetensors"))
    kept = call(work.train("--memory", size + 2**17, "--output", work.folder / "k", gate_steps=3))
    assert kept.code == 0, kept.err
    assert "training: records at once: 1" in kept.err
    small = call(work.train("--memory", "1000", "--output", work.folder / "small"))
    assert small.code == 2 and "weights alone" in small.error


def test_a_gate_alone_needs_adapters(work: Workplace, call: Any):
    assert "archive is not set" in call(work.train("--gate-only")).error
    # Before any records are drawn, which takes a while.
    output = work.folder / "gate"
    assert "archive is not set" in call(["train", "--gate-only", "--output", str(output)]).error
    assert list(work.folder.glob("gate*")) == []


def test_a_training_shows_how_it_does(work: Workplace, call: Any):
    changes = {"gate_steps": 3, "val_interval": 2, "log_interval": 1}
    out = work.folder / "watched"
    made = call(work.train("--output", out, "--validation", 2, **changes))
    assert made.code == 0, made.err
    assert "training: validation at step 4: reliability" in made.err
    assert sorted(path.name for path in out.iterdir()) == [
        *("adapters.safetensors", "best", "config.json", "curves", "last"),
    ]
    own, best = Archive.load(out), Archive.load(out / "best")
    assert parts(out) and is_equal(dict(own.tensors), dict(best.tensors))
    assert not is_equal(parts(out / "last")[1], {})
    curves = out / "curves"
    for name in ("curves.csv", "curves.png"):
        (curves / name).unlink()
    shown = call(["curves", str(out)])
    assert shown.code == 0 and "the gate opens for: reliability" in shown.out, shown.err
    assert sorted(path.name for path in curves.iterdir()) == [
        *("curves.csv", "curves.jsonl", "curves.png", "recipe.json"),
    ]
    assert call(work.evaluate("--limit", 1, archive=str(out))).code == 0
    assert call(work.evaluate("--limit", 1, "--name", "best", archive=str(out / "best"))).code == 0


def test_few_records_are_all_trained_on(work: Workplace, call: Any):
    out = work.folder / "few"
    assert call(work.train("--output", out)).code == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == ["adapters.safetensors", "config.json", "curves"]
    too_many = call(work.train("--output", out, "--fresh", "--validation", 5)).error
    assert "5 validation records are more than half of the 8 records" in too_many
    assert "no curves in" in call(["curves", str(work.folder)]).error


def test_tensorboard_that_is_missing_is_told_before_anything_runs(
    work: Workplace, call: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    error = call(work.train("--output", work.folder / "new", "--log", "tensorboard")).error
    assert "pip install tensorboard" in error
    assert not (work.folder / "new").exists()
