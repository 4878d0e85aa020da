"""Frozen settings of a training; YAML and plain dictionaries in and out.

All problems of a configuration are reported together, each with the remedy.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

from easyedit_dualedit.data.records import METRICS
from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.config import PRESETS
from easyedit_dualedit.settings import (
    as_number,
    is_number,
    is_seed,
    is_whole,
    not_one_of,
    raise_if,
    unknown_keys,
)

_FASTEST = 1000.0
"""Learning rate beyond which nothing is learned, and single precision overflows."""

_MOST_WORKERS = 256
"""Each is a process of its own with a copy of much of what this one holds."""

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
    augment_targets: float = 0.5
    """Share of the training records, 0 to 1, whose target is drawn from the model's vocabulary, so
    that adapters learn to carry words instead of the data set's answers."""
    text_only: float = 0.1
    """Share of the training records, 0 to 1, that ask a question without a picture in place of
    their own, so that adapters learn to carry edits of text alone, too."""
    end_of_answer: bool = True
    """Whether the loss also asks for the end-of-turn token after the target."""
    gate_steps: int = 1500
    """Optimiser steps of the `learned` gate, before the adapters; 0 leaves it untrained, or that of
    an archive as it is."""
    gate_records: int | None = None
    """Records that teach the gate, the first of all; None means as many as the adapters were
    trained on, at least 500."""
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
    picture_workers: int = 0
    """Processes that decode the pictures of the next batches meanwhile; 0 decodes when needed."""
    seed: int = 0

    def __post_init__(self) -> None:
        raise_if(self.problems())

    def problems(self) -> list[str]:
        """Return one line for each value that is not allowed."""
        problems = []
        for name in ("steps", "batch_size", "accumulate"):
            if not is_whole(getattr(self, name), 1):
                problems.append(f"{name} = {getattr(self, name)!r}: a whole number, 1 or above")
        if not is_number(self.learning_rate, 0.0, _FASTEST) or self.learning_rate == 0:
            problems.append(
                f"learning_rate = {self.learning_rate!r}: a number above 0, at most {_FASTEST}"
            )
        names = [f.name for f in dataclasses.fields(self) if f.name.endswith("_weight")]
        for name in [*names, "gradient_clip"]:
            if not is_number(getattr(self, name), 0.0, math.inf):
                problems.append(f"{name} = {getattr(self, name)!r}: a number, 0 or above")
        if not problems and not any(getattr(self, name) for name in names):
            problems.append(f"{names[0]} = 0, and so are all other weights: set one above 0")
        for name in ("augment_targets", "text_only"):
            if not is_number(getattr(self, name), 0.0, 1.0):
                problems.append(f"{name} = {getattr(self, name)!r}: a share from 0 to 1")
        if self.schedule not in ("constant", "one-cycle"):
            problems.append(not_one_of("schedule", self.schedule, ("constant", "one-cycle")))
        if self.autocast not in ("none", "bfloat16"):
            problems.append(not_one_of("autocast", self.autocast, ("none", "bfloat16")))
        for name in ("checkpoint_activations", "compile_layers"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"{name} = {getattr(self, name)!r}: true or false")
        if not is_seed(self.seed):
            problems.append(f"seed = {self.seed!r}: a whole number from 0 to {2**32 - 1}")
        for name in ("gate_steps", "feature_cache_bytes", "state_cache_bytes", "picture_workers"):
            if not is_whole(getattr(self, name), 0):
                problems.append(f"{name} = {getattr(self, name)!r}: a whole number, 0 or above")
        if is_whole(self.picture_workers, _MOST_WORKERS + 1):
            problems.append(f"picture_workers = {self.picture_workers}: at most {_MOST_WORKERS}")
        if self.gate_records is not None and not is_whole(self.gate_records, 1):
            problems.append(
                f"gate_records = {self.gate_records!r}: a whole number, 1 or above, or null for as"
                " many as the adapters are trained on"
            )
        folder = self.state_cache_folder
        if folder is not None and not (isinstance(folder, str) and folder.strip()):
            problems.append(f"state_cache_folder = {folder!r}: a folder as text, or null for none")
        return problems

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each metric's loss."""
        return {metric: float(getattr(self, f"{metric}_weight")) for metric in METRICS}

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
            values = {
                "text_locality_weight": 0.0,
                "augment_targets": 0.0,
                "text_only": 0.0,
                "end_of_answer": False,
                "gate_steps": 0,
            }
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
