"""What tells a model from another: adapters and edits belong to one."""

import base64
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from easyedit_dualedit.model.backbone import Backbone

logger = logging.getLogger(__name__)

_SAMPLES = 16
"""Numbers that are kept of each tensor, evenly spread over it."""

_FIRST_SAMPLES = 8
_FIRST_TOLERANCE = 0.02
"""What earlier versions kept of each decoder layer's first matrix, and how far it might be off."""

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
"""Dtypes of weights, the coarsest first."""


@dataclass(frozen=True)
class PartSample:
    """Some weights of one part of a model."""

    dtype: str
    """The coarsest dtype among them."""
    values: tuple[float, ...]

    def is_same(self, other: "PartSample") -> bool:
        """Return whether two models may have this part in common, in whatever dtypes.

        In one dtype they are equal; else the finer is rounded to the coarser. A float16 and a
        bfloat16 copy of the same weights may differ by a rounding more.
        """
        mine, theirs = torch.tensor(self.values), torch.tensor(other.values)
        if mine.shape != theirs.shape or not bool((mine.isfinite() & theirs.isfinite()).all()):
            return False
        names = {self.dtype, other.dtype}
        coarser = next(dtype for name, dtype in _DTYPES.items() if name in names)
        mine, theirs = mine.to(coarser).float(), theirs.to(coarser).float()
        room = torch.zeros(())
        if names == {"bfloat16", "float16"}:
            room = 2.0**-7 * torch.maximum(mine.abs(), theirs.abs()) + 2.0**-23
        return bool(((mine - theirs).abs() <= room).all())


@dataclass(frozen=True)
class ModelFingerprint:
    """Enough of a model to tell it from another, in whatever dtype it is loaded."""

    architecture: Mapping[str, Any]
    parts: Mapping[str, PartSample] = field(default_factory=dict)
    """Some weights of every tensor of every part; a part is left out where it is quantised."""
    first_weights: tuple[float, ...] = ()
    """All that an earlier version kept: a few weights of each decoder layer's first matrix."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """Return the fingerprint of a model."""
        config: Any = backbone.model.config
        architecture = {
            "model_type": config.model_type,
            "hidden_size": backbone.hidden_size,
            "decoder_layers": len(backbone.layers),
            "vocabulary": int(config.get_text_config().vocab_size),
        }
        sampled = {name: _sample(parameters) for name, parameters in _parts_of(backbone)}
        known = {name: part for name, part in sampled.items() if part.values}
        return cls(architecture, known, _first_weights(backbone))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return a fingerprint that was written as `to_dict` has it, or by an earlier version.

        Raises:
            ValueError, KeyError, TypeError: if it is damaged.
        """
        architecture = dict(values["architecture"])
        if "parts" not in values:
            first = tuple(float(weight) for weight in values["weights"])
            if not all(map(math.isfinite, first)):
                raise ValueError("weights of the fingerprint are no numbers")
            return cls(architecture, first_weights=first)
        parts = {}
        for name, part in dict(values["parts"]).items():
            if part["dtype"] not in _DTYPES:
                raise ValueError(f"dtype {part['dtype']!r} of the fingerprint's {name}")
            numbers = np.frombuffer(base64.b64decode(part["values"], validate=True), "<f4")
            if not np.isfinite(numbers).all():
                raise ValueError(f"weights of the fingerprint's {name} are no numbers")
            parts[str(name)] = PartSample(part["dtype"], tuple(numbers.tolist()))
        return cls(architecture, parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        if not self.parts:
            return {"architecture": dict(self.architecture), "weights": list(self.first_weights)}
        parts = {
            name: {
                "dtype": part.dtype,
                "values": base64.b64encode(np.array(part.values, "<f4").tobytes()).decode(),
            }
            for name, part in self.parts.items()
        }
        return {"architecture": dict(self.architecture), "parts": parts}

    def difference(self, other: "ModelFingerprint") -> str | None:
        """Return what another model has otherwise in a few words, or None if nothing."""
        for key, value in self.architecture.items():
            if other.architecture.get(key) != value:
                return f"{key} {other.architecture.get(key)!r} instead of {value!r}"
        if not self.parts and self.first_weights:
            logger.warning(
                "saved by an earlier version, which kept little of the model's weights: whether"
                " this is the same model is only partly checked; save again to have it checked"
            )
            return None if _agrees(self.first_weights, other.first_weights) else "other weights"
        differing = [
            name
            for name, part in self.parts.items()
            if name in other.parts and not part.is_same(other.parts[name])
        ]
        if not differing:
            return None
        more = f" and {len(differing) - 1} more parts" if len(differing) > 1 else ""
        return f"other weights in its {differing[0]}{more}"


def _parts_of(backbone: Backbone) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Yield the parts of a model by names that do not depend on how its library names them."""
    seen: set[int] = set()

    def unseen(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        fresh = [parameter for parameter in parameters if id(parameter) not in seen]
        seen.update(map(id, fresh))
        return fresh

    model: Any = backbone.model
    for index, layer in enumerate(backbone.layers):
        yield f"decoder layer {index}", unseen(layer.parameters())
    for name, getter in (("embeddings", "get_input_embeddings"), ("head", "get_output_embeddings")):
        module = getattr(model, getter)()
        yield name, unseen(module.parameters()) if module is not None else []
    yield "vision tower, projector and norms", unseen(model.parameters())


@torch.no_grad()
def _sample(parameters: Iterable[nn.Parameter]) -> PartSample:
    values: list[Tensor] = []
    dtypes: set[str] = set()
    for parameter in parameters:
        dtype = str(parameter.dtype).removeprefix("torch.")
        # Quantised weights are not numbers of their own, and offloaded ones are not here.
        if dtype not in _DTYPES or parameter.is_meta or not parameter.numel():
            continue
        flat = parameter.detach().flatten()
        index = torch.arange(_SAMPLES) * (len(flat) - 1) // (_SAMPLES - 1)
        values.append(flat[index.to(flat.device)].float().cpu())
        dtypes.add(dtype)
    coarsest = next((name for name in _DTYPES if name in dtypes), "float32")
    return PartSample(coarsest, tuple(torch.cat(values).tolist()) if values else ())


def _first_weights(backbone: Backbone) -> tuple[float, ...]:
    """Return what earlier versions kept of a model."""
    samples: list[float] = []
    for layer in backbone.layers:
        matrix = next((p for p in layer.parameters() if p.dim() == 2), None)
        is_plain = matrix is not None and matrix.is_floating_point() and matrix.itemsize > 1
        if matrix is None or not is_plain or matrix.is_meta:
            return ()
        flat = matrix.detach().flatten()
        index = torch.arange(_FIRST_SAMPLES) * (len(flat) - 1) // (_FIRST_SAMPLES - 1)
        samples += flat[index.to(flat.device)].to(torch.bfloat16).float().tolist()
    return tuple(samples)


def _agrees(stored: tuple[float, ...], own: tuple[float, ...]) -> bool:
    if not stored or not own:
        return True
    if len(stored) != len(own):
        return False
    mine, theirs = torch.tensor(stored), torch.tensor(own)
    room = _FIRST_TOLERANCE * torch.maximum(mine.abs(), theirs.abs()) + 1e-6
    return bool(((mine - theirs).abs() <= room).all())  # NaN is never within
