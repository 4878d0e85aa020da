"""Ablation: variants differ in what they say, each is trained once, gates are shared."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_data import fast, write_data
from tiny_editors import tiny_config
from tiny_models import TinyModel

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import ConfigError, LayerError
from easyedit_dualedit.experiments import ablate as module
from easyedit_dualedit.experiments.ablate import (
    COLUMNS,
    PUBLISHED,
    Variant,
    ablate,
    is_done,
    layer_pairs,
    variants,
)
from easyedit_dualedit.measure.protocols import EVALUATION_PROTOCOLS
from easyedit_dualedit.measure.target_split import GROUPS, TargetSplit
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.report import plots

CONFIG = tiny_config(gate={"kind": "learned"})
TRAINING = fast(steps=2, gate_steps=5)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path / "data", 8), tmp_path / "data")


def run(
    chosen: Sequence[Variant], tiny: TinyModel, records: list[Record], folder: Path
) -> list[dict[str, Any]]:
    return ablate(
        chosen, tiny.model, tiny.processor, records, records[:2], folder, {}, progress=False
    )


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often adapters and gates are trained."""
    calls = {"train": 0, "train_gate": 0}
    for name in calls:
        real = getattr(module, name)

        def counting(*arguments: Any, _name: str = name, _real: Any = real, **options: Any) -> Any:
            calls[_name] += 1
            return _real(*arguments, **options)

        monkeypatch.setattr(module, name, counting)
    return calls


def test_each_variant_differs_from_the_base_in_one_part():
    base, *others, published = variants(CONFIG, TRAINING)
    assert base.config == CONFIG and base.training == TRAINING
    assert len({variant.folder for variant in (base, *others)}) == 1 + len(others)
    for variant in others:
        changed = {
            name
            for name in (
                "text_layer",
                "vision_layer",
                "modalities",
                "signal",
                "last_prompt_token",
                "word_path",
                "answer_tokens",
            )
            if getattr(variant.config, name) != getattr(CONFIG, name)
        }
        trained_otherwise = variant.training != TRAINING
        assert len(changed) + trained_otherwise == 1 or changed == {"text_layer", "vision_layer"}
    layers = {"text_layer": CONFIG.text_layer, "vision_layer": CONFIG.vision_layer}
    preset = DualEditConfig.preset("published", **layers, width=CONFIG.width, heads=CONFIG.heads)
    assert replace(published.config, gate=preset.gate) == preset
    assert published.training == TRAINING and "last-token" in published.gates
    names = [variant.name for variant in variants(preset, TRAINING)]
    assert PUBLISHED not in names, "it is the base then"
    pairs = layer_pairs(CONFIG, TRAINING, [(0, 3)])
    assert (pairs[0].config.text_layer, pairs[0].config.vision_layer) == (0, 3)


def test_rows_hold_every_gate_of_every_variant(
    tiny: TinyModel, records: list[Record], tmp_path: Path
):
    chosen = [
        variant
        for variant in variants(CONFIG, TRAINING)
        if variant.name in ("both adapters", "vision adapter only")
    ]
    rows = run(chosen, tiny, records, tmp_path)
    assert [(row["variant"], row["gate"]) for row in rows] == [
        ("both adapters", "open"),
        ("both adapters", "cosine"),
        ("both adapters", "centred"),
        ("both adapters", "learned"),
        ("both adapters", "last-token"),
        ("vision adapter only", "open"),
        ("vision adapter only", "learned"),
    ]
    for row in rows:
        assert set(row["protocols"]) == set(EVALUATION_PROTOCOLS)
        assert row["protocols"]["generate"]["reliability"]["n"] == 2
        assert set(row["protocols"]["generate"]) >= set(COLUMNS)


def test_rows_are_split_by_what_was_seen_in_training(
    llava: TinyModel, records: list[Record], tmp_path: Path
):
    chosen = layer_pairs(CONFIG, TRAINING, [(1, 2)])
    split = TargetSplit("a test", (records[0].index,), (records[1].index,), ())
    row = ablate(
        *(chosen, llava.model, llava.processor, records, records[:2], tmp_path, {}),
        split=split,
        progress=False,
    )[0]
    counts = {
        group: row["by_target"]["generate"][group]["reliability"]["n"] for group in GROUPS[:2]
    }
    assert counts == {"seen": 1, "unseen": 1}
    # The split decides no result: the same variant goes on without one.
    assert "by_target" not in run(chosen, llava, records, tmp_path)[0]


def test_a_variant_is_trained_once_and_a_gate_once_per_text_layer(
    llava: TinyModel, records: list[Record], tmp_path: Path, counted: dict[str, int]
):
    chosen = layer_pairs(CONFIG, TRAINING, [(1, 2), (1, 3), (2, 2)])
    first = run(chosen, llava, records, tmp_path)
    assert counted == {"train": 3, "train_gate": 2}
    assert all(is_done(variant, tmp_path, {}) for variant in chosen)
    assert run(chosen, llava, records, tmp_path) == first
    assert counted == {"train": 3, "train_gate": 2}
    options = {"fresh": True, "progress": False}
    again = chosen[:1]
    ablate(again, llava.model, llava.processor, records, records[:2], tmp_path, {}, **options)
    assert counted == {"train": 4, "train_gate": 3}
    assert is_done(again[0], tmp_path, {}) and not is_done(again[0], tmp_path, {"other": 1})


def test_a_stopped_variant_continues(
    llava: TinyModel,
    records: list[Record],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: dict[str, int],
):
    chosen = layer_pairs(CONFIG, TRAINING, [(1, 2), (1, 3)])

    def stop(*_arguments: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            run(chosen, llava, records, tmp_path)
    assert not is_done(chosen[0], tmp_path, {}) and counted["train"] == 1
    assert len(run(chosen, llava, records, tmp_path)) == 4
    assert counted == {"train": 2, "train_gate": 1}


def test_mistakes_are_told_before_anything_is_trained(
    llava: TinyModel, records: list[Record], tmp_path: Path, counted: dict[str, int]
):
    pairs = layer_pairs(CONFIG, TRAINING, [(1, 2), (1, 9)])
    with pytest.raises(LayerError, match="vision_layer = 9"):
        run(pairs, llava, records, tmp_path)
    with pytest.raises(ConfigError, match="share a folder"):
        run([pairs[0], pairs[0]], llava, records, tmp_path)
    assert counted["train"] == 0
    run(pairs[:1], llava, records, tmp_path)
    other = replace(pairs[0], training=fast(steps=3, gate_steps=5))
    with pytest.raises(ConfigError, match="other settings"):
        run([other], llava, records, tmp_path)


def test_plots_are_pictures(
    llava: TinyModel, records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = run(layer_pairs(CONFIG, TRAINING, [(1, 2)]), llava, records, tmp_path)
    effect = {"kl": {"mean": 1.0, "low": 0.5, "high": 2.0}}
    effect["flips"] = effect["kl"]
    found = {
        "layers": [
            {"layer": layer, "vision": effect, "text": effect, "both": effect} for layer in (0, 1)
        ],
        "proposal": {"text_layer": 1, "vision_layer": 0},
    }
    monkeypatch.setattr(plots, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="need matplotlib"):
        plots.plot_layers(found, tmp_path / "none.png")
    monkeypatch.undo()
    if not plots.is_available():
        pytest.skip("matplotlib, of the extra `plots`, is not installed")
    plots.plot_layers(found, tmp_path / "layers.png")
    plots.plot_ablation(rows, tmp_path / "rows.png")
    for name in ("layers", "rows"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.width > 300
            assert len(set(picture.convert("RGB").resize((64, 64)).getdata())) > 5
