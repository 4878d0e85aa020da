"""Frozen settings of an editor; YAML and plain dictionaries in and out.

All problems of a configuration are reported together, each with the remedy. Nothing here knows
about models, torch modules or EasyEdit.
"""

import dataclasses
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
    word_path: bool = True
    """Whether adapters also write the words of the edit themselves, as the model's output
    embeddings have them. Not in the paper: without it they say only answers that training taught.
    """
    answer_tokens: bool = True
    """Whether the text adapter also changes the answer's tokens, each as it is made. Not in the
    paper: without it an answer of several tokens has to be held by the prompt alone."""
    modalities: tuple[Modality, ...] = ("text", "vision")
    """Adapters in use."""
    gate: GateConfig = field(default_factory=GateConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """What the model does not say of itself; seldom needed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "gate", gate_from(self.gate))
        if isinstance(self.modalities, list):
            object.__setattr__(self, "modalities", tuple(self.modalities))
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
        for name in ("last_prompt_token", "word_path", "answer_tokens"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} = {getattr(self, name)!r}: true or false")
        chosen = self.modalities
        if not isinstance(chosen, tuple) or not chosen or any(m not in MODALITIES for m in chosen):
            problems.append(
                f"modalities = {chosen!r}: a list of {' and '.join(MODALITIES)}, or of one of them"
            )
        elif len(set(chosen)) < len(chosen):
            problems.append(f"modalities = {chosen!r}: each at most once")
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
                "word_path": False,
                "answer_tokens": False,
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

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return a configuration, which a plain mapping may describe.

        Raises:
            ConfigError: if it is neither, or as `from_dict`.
        """
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        if not isinstance(value, cls):
            raise ConfigError(f"config = {value!r:.80}: give a DualEditConfig, or a mapping")
        return value

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` turns into an equal configuration."""
        values = dataclasses.asdict(self)
        values["modalities"] = list(self.modalities)
        return values

    def with_gate(self, kind: str, threshold: float | None = None) -> Self:
        """Return this configuration with another gate."""
        gate = gate_from({"kind": kind, "threshold": threshold})
        return dataclasses.replace(self, gate=gate)


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
        given = value if isinstance(value, int | float | list | tuple) else type(value).__name__
        raise ConfigError(
            f"gate = {given!r} in {source}: a kind, or a mapping of kind, threshold,"
            " false_open_rate"
        )
    known = [f.name for f in dataclasses.fields(GateConfig)]
    raise_if(unknown_keys(value, known, f"gate in {source}"))
    return GateConfig(**{key: as_number(item) for key, item in value.items()})
