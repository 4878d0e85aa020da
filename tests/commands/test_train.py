"""The command `train`: the gate of trained adapters can be made again without training them."""

from pathlib import Path
from typing import Any

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


def test_a_gate_is_made_again_and_the_adapters_stay(work: Workplace, call: Any):
    changes = {"gate": {"kind": "learned"}, "gate_steps": 3}
    assert call(work.train(**changes)).code == 0
    gate, adapters = parts(work.adapters)
    again = work.folder / "again"
    options = ["--gate-only", "--archive", work.adapters, "--output", again]
    made = call(work.train(*options, **changes))
    assert made.code == 0, made.err
    assert "training" not in made.err and "learned" in made.out
    assert is_equal(parts(again)[0], gate) and is_equal(parts(again)[1], adapters)
    assert Archive.load(again).training_targets == Archive.load(work.adapters).training_targets
    assert sorted(path.name for path in again.iterdir()) == ["adapters.safetensors", "config.json"]
    # In place, with other settings.
    options = ["--gate-only", "--archive", again, "--output", again]
    assert call(work.train(*options, **changes | {"gate_records": 6})).code == 0
    assert not is_equal(parts(again)[0], gate)
    assert is_equal(parts(again)[1], adapters)


def test_a_gate_alone_needs_adapters(work: Workplace, call: Any):
    assert "archive is not set" in call(work.train("--gate-only")).error
