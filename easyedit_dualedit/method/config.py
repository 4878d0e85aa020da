"""Frozen settings of an editor and of its training; YAML and plain dictionaries in and out.

All problems of a configuration are reported together, each with the remedy. Nothing here knows
about models, torch modules or EasyEdit.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.model.families import BackboneConfig
from easyedit_dualedit.settings import (
    as_number,
    is_number,
    is_whole,
    not_one_of,
    raise_if,
    unknown_keys,
)

GateKind = Literal["cosine", "centred", "learned", "last-token", "open"]
SignalPositions = Literal["target", "prompt+target", "all"]
Modality = Literal["text", "vision"]
Preset = Literal["default", "published"]

GATE_KINDS: tuple[str, ...] = get_args(GateKind)
SIGNAL_POSITIONS: tuple[str, ...] = get_args(SignalPositions)
MODALITIES: tuple[str, ...] = get_args(Modality)
PRESETS: tuple[str, ...] = get_args(Preset)

PUBLISHED_THRESHOLD = 0.8
"""Cosine at or above which the published code's gate opens; a constant of that code."""


@dataclass(frozen=True)
class GateConfig:
    """Which similarity decides whether an edit applies, and from which value on.

    Raises:
        ConfigError: if the kind is unknown or the threshold is no cosine.
    """

    kind: GateKind = "learned"
    """`cosine`, `centred` and `learned` read the last prompt token; `last-token` reads the label;
    `open` is no gate at all."""
    threshold: float | None = None
    """Cosine, -1 to 1, at or above which the gate opens; None means calibrated on training data."""
    false_open_rate: float = 0.005
    """Share of held-out queries out of scope, 0 to 1, that a `learned` gate may open for."""

    def __post_init__(self) -> None:
        raise_if(self.problems())

    @property
    def reads_label(self) -> bool:
        """True for the gate kind whose decision depends on the target."""
        return self.kind == "last-token"

    def problems(self) -> list[str]:
        """Return one line for each value that is not allowed."""
        problems = []
        if self.kind not in GATE_KINDS:
            problems.append(not_one_of("gate kind", self.kind, GATE_KINDS))
        if self.threshold is not None and not is_number(self.threshold, -1.0, 1.0):
            problems.append(
                f"gate threshold = {self.threshold!r}: a cosine from -1 to 1, or null to calibrate"
                " it on training data"
            )
        if not is_number(self.false_open_rate, 0.0, 1.0):
            problems.append(f"gate false_open_rate = {self.false_open_rate!r}: a share from 0 to 1")
        return problems


@dataclass(frozen=True)
class DualEditConfig:
    """Everything that decides what an edit does to a model.

    Layers count from 0; an adapter acts on the output of its layer.

        >>> config = DualEditConfig.preset("default", text_layer=16, vision_layer=19, width=512)
        >>> config.gate.kind
        'learned'
        >>> DualEditConfig.from_dict(config.to_dict()) == config
        True
        >>> config.with_gate("cosine", threshold=0.8).gate.threshold
        0.8

    Raises:
        ConfigError: naming every value that is not allowed.
    """

    text_layer: int
    vision_layer: int
    width: int = 1024
    """Width of queries, keys and values inside an adapter, over all heads."""
    heads: int = 8
    signal: SignalPositions = "target"
    """Positions of the request whose states the adapters read."""
    last_prompt_token: bool = True
    """Whether the text adapter also changes the last prompt token."""
    modalities: tuple[Modality, ...] = ("text", "vision")
    """Adapters in use."""
    gate: GateConfig = field(default_factory=GateConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """What the model does not say of itself; seldom needed."""

    def __post_init__(self) -> None:
        raise_if(self.problems())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose states an edit needs, ascending, without repeats.

        The text layer is always one of them, since the gate reads it.
        """
        vision = {self.vision_layer} if "vision" in self.modalities else set()
        return tuple(sorted({self.text_layer} | vision))

    def problems(self) -> list[str]:
        """Return one line for each value that is not allowed."""
        problems = []
        for name in ("text_layer", "vision_layer"):
            if not is_whole(getattr(self, name), 0):
                problems.append(f"{name} = {getattr(self, name)!r}: a decoder layer, 0 or above")
        for name in ("width", "heads"):
            if not is_whole(getattr(self, name), 1):
                problems.append(f"{name} = {getattr(self, name)!r}: a whole number, 1 or above")
        if not problems and self.width % self.heads:
            problems.append(f"width ({self.width}) must be divisible by heads ({self.heads})")
        if self.signal not in SIGNAL_POSITIONS:
            problems.append(not_one_of("signal", self.signal, SIGNAL_POSITIONS))
        if not isinstance(self.last_prompt_token, bool):
            problems.append(f"last_prompt_token = {self.last_prompt_token!r}: true or false")
        chosen = self.modalities
        if not isinstance(chosen, tuple) or not chosen or any(m not in MODALITIES for m in chosen):
            problems.append(not_one_of("modalities", chosen, MODALITIES))
        return problems

    @classmethod
    def preset(cls, name: str, *, text_layer: int, vision_layer: int, **changes: Any) -> Self:
        """Return a named set of choices for the given layers, with `changes` applied over it.

        `default` is what measures best under label-free protocols; `published` is what the
        published code does, made to run correctly.

        Raises:
            ConfigError: if the preset or a change is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(not_one_of("preset", name, PRESETS))
        values: dict[str, Any] = {"text_layer": text_layer, "vision_layer": vision_layer}
        if name == "published":
            values |= {
                "signal": "all",
                "last_prompt_token": False,
                "gate": {"kind": "last-token", "threshold": PUBLISHED_THRESHOLD},
            }
        return cls.from_dict(values | changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the configuration") -> Self:
        """Return the configuration that a plain mapping describes.

        Args:
            values: keys are field names; `gate` is a kind or a mapping of `GateConfig`'s fields,
                `backbone` a mapping of `BackboneConfig`'s.
            source: what to call the mapping in an error.

        Raises:
            ConfigError: naming every unknown key, missing key and value that is not allowed.
        """
        problems = unknown_keys(values, (f.name for f in dataclasses.fields(cls)), source)
        for name in ("text_layer", "vision_layer"):
            if name not in values:
                problems.append(f"{source} has no {name}; give the decoder layer that it edits")
        known = {f.name for f in dataclasses.fields(cls)}
        arguments: dict[str, Any] = {"text_layer": 0, "vision_layer": 0}
        arguments |= {key: value for key, value in values.items() if key in known}
        for name, read in (("gate", gate_from), ("backbone", BackboneConfig.read)):
            try:
                arguments[name] = read(arguments.pop(name, None), source=source)
            except ConfigError as error:
                problems.append(str(error))
        if isinstance(arguments.get("modalities"), list):
            arguments["modalities"] = tuple(arguments["modalities"])
        try:
            config = cls(**arguments)
        except ConfigError as error:
            problems.append(str(error))
        raise_if(problems)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` turns into an equal configuration."""
        values = dataclasses.asdict(self)
        values["modalities"] = list(self.modalities)
        return values

    def with_gate(self, kind: str, threshold: float | None = None) -> Self:
        """Return this configuration with another gate."""
        gate = gate_from({"kind": kind, "threshold": threshold})
        return dataclasses.replace(self, gate=gate)


CACHE_BYTES = 2**30
"""Bytes that a training keeps between steps, of picture features and of states each."""


@dataclass(frozen=True)
class TrainingConfig:
    """How adapters are trained; none of it is needed to use them.

    Raises:
        ConfigError: naming every value that is not allowed.
    """

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 4
    """Requests a step."""
    learning_rate: float = 1e-4
    """Adam's step size."""
    schedule: Literal["constant", "one-cycle"] = "constant"
    gradient_clip: float = 0.0
    """Largest norm of the gradient; 0 leaves it alone."""
    reliability_weight: float = 1.0
    text_generality_weight: float = 1.0
    image_generality_weight: float = 1.0
    image_locality_weight: float = 1.0
    text_locality_weight: float = 1.0
    end_of_answer: bool = True
    """Whether the loss also asks for the end-of-turn token after the target."""
    gate_steps: int = 1500
    """Optimiser steps of the `learned` gate, after the adapters; 0 leaves it untrained."""
    accumulate: int = 1
    """Batches whose gradients one optimiser step averages."""
    autocast: Literal["none", "bfloat16"] = "none"
    """Precision in which the frozen model computes; the adapters keep their own."""
    checkpoint_activations: bool = False
    """Whether layers above the first edit keep their inputs alone for the gradient, and run again
    for the rest: less memory, more time, the same result."""
    compile_layers: bool = False
    """Whether torch.compile makes code of its own for the layers above the first edit."""
    feature_cache_bytes: int = CACHE_BYTES
    """Bytes of picture features to keep between steps, on the model's device."""
    state_cache_bytes: int = CACHE_BYTES
    """Bytes of states below the first edit to keep between steps, on the model's device."""
    state_cache_folder: str | None = None
    """Folder that keeps those states on disk, in half precision, for later steps and runs."""
    seed: int = 0

    def __post_init__(self) -> None:
        raise_if(self.problems())

    def problems(self) -> list[str]:
        """Return one line for each value that is not allowed."""
        problems = []
        for name in ("steps", "batch_size", "accumulate"):
            if not is_whole(getattr(self, name), 1):
                problems.append(f"{name} = {getattr(self, name)!r}: a whole number, 1 or above")
        if not is_number(self.learning_rate, 0.0, math.inf) or self.learning_rate == 0:
            problems.append(f"learning_rate = {self.learning_rate!r}: a number above 0")
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")]
        for name in [*names, "gradient_clip"]:
            if not is_number(getattr(self, name), 0.0, math.inf):
                problems.append(f"{name} = {getattr(self, name)!r}: a number, 0 or above")
        if self.schedule not in ("constant", "one-cycle"):
            problems.append(not_one_of("schedule", self.schedule, ("constant", "one-cycle")))
        if self.autocast not in ("none", "bfloat16"):
            problems.append(not_one_of("autocast", self.autocast, ("none", "bfloat16")))
        for name in ("checkpoint_activations", "compile_layers"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} = {getattr(self, name)!r}: true or false")
        for name in ("seed", "gate_steps", "feature_cache_bytes", "state_cache_bytes"):
            if not is_whole(getattr(self, name), 0):
                problems.append(f"{name} = {getattr(self, name)!r}: a whole number, 0 or above")
        folder = self.state_cache_folder
        if folder is not None and not (isinstance(folder, str) and folder.strip()):
            problems.append(f"state_cache_folder = {folder!r}: a folder as text, or null for none")
        return problems

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return the training that belongs to a `DualEditConfig.preset` of the same name.

        Raises:
            ConfigError: if the preset or a change is unknown.
        """
        if name not in PRESETS:
            raise ConfigError(not_one_of("preset", name, PRESETS))
        values: dict[str, Any] = {}
        if name == "published":
            values = {"text_locality_weight": 0.0, "end_of_answer": False, "gate_steps": 0}
        return cls.from_dict(values | changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "the configuration") -> Self:
        """Return the training that a plain mapping describes.

        Numbers may be strings such as "1e-4", which YAML does not read as a number.

        Raises:
            ConfigError: naming every unknown key and value that is not allowed.
        """
        raise_if(unknown_keys(values, (f.name for f in dataclasses.fields(cls)), source))
        numbers = {k: as_number(v) for k, v in values.items() if k != "state_cache_folder"}
        return cls(**{**values, **numbers})


def gate_from(value: Any, *, source: str = "the configuration") -> GateConfig:
    """Return the gate that a kind, a mapping, or None (the default) describes.

    Raises:
        ConfigError: if it describes none.
    """
    if value is None:
        return GateConfig()
    if isinstance(value, GateConfig):
        return value
    if isinstance(value, str):
        return GateConfig(kind=value)  # type: ignore[arg-type]  # checked on construction
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"gate = {value!r} in {source}: a kind, or a mapping of kind, threshold,"
            " false_open_rate"
        )
    known = [f.name for f in dataclasses.fields(GateConfig)]
    raise_if(unknown_keys(value, known, f"gate in {source}"))
    return GateConfig(**{key: as_number(item) for key, item in value.items()})
