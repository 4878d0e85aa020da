"""Configurations: what they accept, what they refuse and how they say so."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.config import (
    GATE_KINDS,
    MODALITIES,
    PRESETS,
    SIGNAL_POSITIONS,
    DualEditConfig,
    GateConfig,
    gate_from,
)
from easyedit_dualedit.settings import as_number, read_yaml, unknown_keys
from easyedit_dualedit.train.config import TrainingConfig

LAYERS = {"text_layer": 1, "vision_layer": 2}


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "settings.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("kind", GATE_KINDS)
@pytest.mark.parametrize("threshold", [None, -1, 0, 0.8, 1.0])
def test_a_gate_takes_every_kind_and_every_cosine(kind: Any, threshold: float | None):
    gate = GateConfig(kind, threshold)
    assert gate.problems() == []
    assert gate.reads_label == (kind == "last-token")


@pytest.mark.parametrize(
    "threshold", [1.01, -1.01, float("nan"), float("inf"), True, "0.8", [0.8]], ids=repr
)
def test_a_gate_refuses_what_is_no_cosine(threshold: Any):
    with pytest.raises(ConfigError, match="gate threshold = .*cosine from -1 to 1"):
        GateConfig(threshold=threshold)


def test_a_gate_reports_kind_and_threshold_together():
    with pytest.raises(ConfigError, match=r"gate kind = 'cosin'.*last-token.*threshold = 2"):
        GateConfig("cosin", 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, GateConfig()),
        ("centred", GateConfig("centred")),
        ({"kind": "open"}, GateConfig("open")),
        ({"threshold": "5e-1"}, GateConfig(threshold=0.5)),
        ({}, GateConfig()),
        (GateConfig("open", 0.1), GateConfig("open", 0.1)),
    ],
)
def test_a_gate_is_read_from_a_kind_or_a_mapping(value: Any, expected: GateConfig):
    assert gate_from(value) == expected


def test_a_gate_refuses_other_types_and_unknown_keys():
    with pytest.raises(ConfigError, match=r"gate = 0.8 in that.yaml: a kind,? or a mapping"):
        gate_from(0.8, source="that.yaml")
    with pytest.raises(
        ConfigError, match=r"unknown keys in gate in that.yaml: treshold; did you mean threshold\?"
    ):
        gate_from({"treshold": 0.8}, source="that.yaml")


def test_defaults_are_allowed_and_named_in_the_error_of_a_wrong_value():
    config = DualEditConfig(**LAYERS)
    assert config.problems() == []
    assert config.width % config.heads == 0
    for name, allowed in (("signal", SIGNAL_POSITIONS), ("modalities", MODALITIES)):
        with pytest.raises(ConfigError) as caught:
            dataclasses.replace(config, **{name: ("nonsense",)})
        assert name in str(caught.value)
        assert all(choice in str(caught.value) for choice in allowed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_layer", -1),
        ("text_layer", 1.0),
        ("vision_layer", True),
        ("vision_layer", "2"),
        ("width", 0),
        ("heads", -8),
        ("heads", None),
        ("signal", "prompt"),
        ("last_prompt_token", 1),
        ("last_prompt_token", "yes"),
        ("modalities", ()),
        ("modalities", ("text", "audio")),
    ],
)
def test_each_bad_value_is_named(name: str, value: Any):
    with pytest.raises(ConfigError, match=f"^{name} = "):
        DualEditConfig(**LAYERS | {name: value})


@pytest.mark.parametrize("value", [None, 5], ids=repr)
def test_modalities_that_are_no_list_are_a_configuration_error(value: Any):
    with pytest.raises(ConfigError, match="modalities"):
        DualEditConfig.from_dict(LAYERS | {"modalities": value})


def test_all_bad_values_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        DualEditConfig(-1, -2, width=0, signal="x", modalities=())  # type: ignore[arg-type]
    message = str(caught.value)
    for name in ("text_layer", "vision_layer", "width", "signal", "modalities"):
        assert f"{name} = " in message
    assert "divisible" not in message


def test_unknown_keys_missing_layers_and_a_bad_gate_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        DualEditConfig.from_dict({"widht": 8, "gate": "cosin"}, source="that.yaml")
    message = str(caught.value)
    assert "unknown keys in that.yaml: widht; did you mean width?" in message
    assert "no text_layer" in message and "no vision_layer" in message
    assert "gate kind = 'cosin'" in message


@pytest.mark.parametrize("other", [{"widht": 8}, {"gate": "cosin"}], ids=["key", "gate"])
def test_bad_values_are_reported_with_the_other_problems(other: dict[str, Any]):
    with pytest.raises(ConfigError, match="heads = 0"):
        DualEditConfig.from_dict(LAYERS | {"heads": 0} | other)


def test_width_is_shared_out_among_heads():
    with pytest.raises(ConfigError, match=r"width \(10\) must be divisible by heads \(4\)"):
        DualEditConfig(**LAYERS, width=10, heads=4)


@pytest.mark.parametrize(
    ("text", "vision", "expected"), [(1, 2, (1, 2)), (5, 2, (2, 5)), (3, 3, (3,))]
)
def test_layers_are_ascending_without_repeats(text: int, vision: int, expected: tuple[int, ...]):
    assert DualEditConfig(text, vision).layers == expected


@pytest.mark.parametrize(
    "config",
    [
        DualEditConfig(**LAYERS),
        DualEditConfig(
            9, 4, 12, 3, "all", False, False, True, ("vision",), GateConfig("centred", -0.25)
        ),
        DualEditConfig.preset("published", **LAYERS),
    ],
    ids=["default", "all-changed", "published"],
)
def test_a_configuration_survives_plain_values_and_json(config: DualEditConfig):
    assert DualEditConfig.from_dict(config.to_dict()) == config
    assert DualEditConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert DualEditConfig.from_dict(yaml.safe_load(yaml.safe_dump(config.to_dict()))) == config


def test_configurations_cannot_be_changed_in_place():
    config = DualEditConfig(**LAYERS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


def test_another_gate_leaves_the_rest():
    config = DualEditConfig(**LAYERS, width=12, heads=3)
    other = config.with_gate("centred", 0.5)
    assert other.gate == GateConfig("centred", 0.5)
    assert dataclasses.replace(other, gate=config.gate) == config
    assert config.with_gate("open").gate.threshold is None
    with pytest.raises(ConfigError, match="gate kind"):
        config.with_gate("shut")


def test_the_published_preset_does_what_the_published_code_does():
    config = DualEditConfig.preset("published", **LAYERS)
    assert config.signal == "all" and not config.last_prompt_token
    assert config.gate == GateConfig("last-token", 0.8)
    training = TrainingConfig.preset("published")
    assert training.text_locality_weight == 0 and not training.end_of_answer


def test_the_default_preset_is_the_default():
    assert DualEditConfig.preset("default", **LAYERS) == DualEditConfig(**LAYERS)
    assert TrainingConfig.preset("default") == TrainingConfig()
    assert not DualEditConfig.preset("default", **LAYERS).gate.reads_label


@pytest.mark.parametrize("name", PRESETS)
def test_changes_win_over_a_preset(name: str):
    config = DualEditConfig.preset(name, **LAYERS, gate="open", signal="target", width=16)
    assert (config.gate, config.signal, config.width) == (GateConfig("open"), "target", 16)
    assert TrainingConfig.preset(name, end_of_answer=True, seed=7).seed == 7


def test_unknown_presets_and_changes_are_refused():
    with pytest.raises(ConfigError, match="preset = 'paper': one of default, published"):
        DualEditConfig.preset("paper", **LAYERS)
    with pytest.raises(ConfigError, match="preset = 'paper'"):
        TrainingConfig.preset("paper")
    with pytest.raises(ConfigError, match="did you mean width"):
        DualEditConfig.preset("default", **LAYERS, wdth=3)
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        TrainingConfig.preset("default", learning_rat=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 1.5),
        ("learning_rate", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("inf")),
        ("learning_rate", "fast"),
        ("gradient_clip", -1),
        ("reliability_weight", float("nan")),
        ("text_generality_weight", -1),
        ("image_generality_weight", "x"),
        ("image_locality_weight", -0.1),
        ("text_locality_weight", None),
        ("schedule", "cosine"),
        ("seed", -1),
        ("state_cache_folder", " "),
        ("state_cache_folder", 3),
    ],
)
def test_each_bad_training_value_is_named(name: str, value: Any):
    with pytest.raises(ConfigError, match=f"^{name} = "):
        TrainingConfig.from_dict({name: value})


def test_bad_training_values_are_reported_together():
    with pytest.raises(ConfigError, match=r"steps = 0.*batch_size = -1.*learning_rate = 0.*seed"):
        TrainingConfig(steps=0, batch_size=-1, learning_rate=0, seed=-3)


def test_a_folder_that_looks_like_a_number_is_a_folder():
    assert TrainingConfig().state_cache_folder is None
    assert TrainingConfig.from_dict({"state_cache_folder": "2024"}).state_cache_folder == "2024"


def test_weights_of_zero_and_other_schedules_are_allowed():
    names = [f.name for f in dataclasses.fields(TrainingConfig) if f.name.endswith("_weight")]
    zeros = dict.fromkeys(names, 0)
    for name in names:
        config = TrainingConfig.from_dict(zeros | {name: 0.1, "schedule": "one-cycle"})
        assert config.problems() == []
    with pytest.raises(ConfigError, match="reliability_weight = 0, and so are all other weights"):
        TrainingConfig.from_dict(zeros)


def test_training_reads_numbers_that_yaml_leaves_as_text(tmp_path: Path):
    values = read_yaml(write(tmp_path, "learning_rate: 1e-4\ngradient_clip: 1e0\n"))
    assert values["learning_rate"] == "1e-4", "otherwise this tests nothing"
    config = TrainingConfig.from_dict(values)
    assert config.learning_rate == 1e-4 and config.gradient_clip == 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-4", 1e-4),
        (" 1e-4 ", 1e-4),
        ("3", 3),
        ("1e3", 1000),
        ("-.5", -0.5),
        ("3 apples", "3 apples"),
        ("1e", "1e"),
        ("nan", "nan"),
        ("infinity", "infinity"),
        ("", ""),
        ("  ", "  "),
        ("-", "-"),
        (None, None),
        (True, True),
        (7, 7),
        ([1], [1]),
    ],
    ids=repr,
)
def test_only_text_that_starts_as_a_number_is_read_as_one(value: Any, expected: Any):
    assert as_number(value) == expected
    assert type(as_number(value)) is type(expected)


@pytest.mark.parametrize("text", ["-1e-1", "+1e-1", ".1e0"])
def test_numbers_with_a_sign_or_a_leading_dot_are_read(text: str):
    assert as_number(text) == float(text)


@pytest.mark.parametrize("text", ["1000", "1e3"])
def test_whole_numbers_written_as_text_are_whole(text: str):
    assert TrainingConfig.from_dict({"steps": text}).steps == 1000


def test_unknown_keys_say_what_is_known():
    assert unknown_keys({"width": 1}, ["width", "heads"], "here") == []
    (line,) = unknown_keys({"zzz": 1, 5: 2, "haeds": 3}, ["width", "heads"], "here")
    assert line == (
        "unknown keys in here: zzz, 5, haeds; did you mean heads? known keys: heads, width"
    )
    (line,) = unknown_keys({"zzz": 1}, ["width"], "here")
    assert "did you mean" not in line and line.endswith("; known keys: width")


def test_yaml_becomes_a_configuration(tmp_path: Path):
    path = write(
        tmp_path,
        "text_layer: 3\nvision_layer: 5\nmodalities: [vision]\n"
        "gate: {kind: centred, threshold: 5e-1}\n",
    )
    config = DualEditConfig.from_dict(read_yaml(path), source=str(path))
    assert config == DualEditConfig(3, 5, modalities=("vision",), gate=GateConfig("centred", 0.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds NoneType, not a mapping"),
        ("- 1\n- 2\n", "holds list, not a mapping"),
        ("a: [1, 2\nb: 3\n", r"is not YAML \(.*line"),
        (b"\xff\xfe\xfa", "is not YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
    ids=["empty", "list", "broken", "binary", "python-object"],
)
def test_other_yaml_is_refused_in_one_line(tmp_path: Path, text: str | bytes, message: str):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_yaml_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot read .*absent.yaml: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read .*: Is a directory"):
        read_yaml(tmp_path)


def test_a_gate_is_made_of_what_describes_one():
    assert DualEditConfig(1, 2, gate="cosine").gate == GateConfig("cosine")  # type: ignore[arg-type]
    mapping: Any = {"kind": "cosine", "threshold": 0.5}
    assert DualEditConfig(1, 2, gate=mapping).gate == GateConfig("cosine", threshold=0.5)
    with pytest.raises(ConfigError, match="gate = 3"):
        DualEditConfig(1, 2, gate=3)  # type: ignore[arg-type]
    listed: Any = ["text"]
    assert DualEditConfig(1, 2, modalities=listed).modalities == ("text",)
