"""What tells a model from another: adapters and edits belong to one."""

import base64
import hashlib
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from easyedit_dualedit.method.idle_parameters import idle_parameters
from easyedit_dualedit.model.backbone import Backbone

logger = logging.getLogger(__name__)

_SAMPLES = 16
"""Numbers that are kept of each tensor, evenly spread over it."""

_FIRST_SAMPLES = 8
_FIRST_TOLERANCE = 0.02
"""What earlier versions kept of each decoder layer's first matrix, and how far it might be off."""

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
"""Dtypes of weights, the coarsest first."""

_IN_PLACE = {"bitsandbytes", "optimum", "torchao"}
"""Libraries that put one quantised parameter in the place of each one: the others keep theirs."""


@dataclass(frozen=True)
class PartSample:
    """Some weights of one part of a model."""

    dtype: str
    """The coarsest dtype among them."""
    values: tuple[float, ...]
    missing: tuple[int, ...] = ()
    """Places, among the part's tensors, of those that cannot be read; none has values."""

    @property
    def places(self) -> list[int]:
        """The places, among the part's tensors, of those that have values, in order."""
        missing = set(self.missing)
        return [place for place in range(self._tensors) if place not in missing]

    @property
    def _tensors(self) -> int:
        return len(self.values) // _SAMPLES + len(self.missing)

    def is_same(self, other: "PartSample") -> bool:
        """Return whether two models may have this part in common, in whatever dtypes.

        In one dtype they are equal; else the finer is rounded to the coarser. A float16 and a
        bfloat16 copy of the same weights may differ by a rounding more. Tensors that cannot be
        read in one of them are not compared, only counted.
        """
        mine, theirs = torch.tensor(self.values), torch.tensor(other.values)
        if not (bool(mine.isfinite().all()) and bool(theirs.isfinite().all())):
            return False
        if self._tensors == other._tensors:
            both = set(self.places) & set(other.places)
            mine, theirs = _at(mine, self.places, both), _at(theirs, other.places, both)
        # Earlier versions kept no places: what they saved of a quantised model has as many values.
        elif mine.shape != theirs.shape or (self.missing and other.missing):
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
    """Some weights of every tensor that can be read of every part; no part without any."""
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
        idle = idle_parameters(backbone.model)
        sampled = {name: _sample(parameters) for name, parameters in _parts_of(backbone, idle)}
        known = {name: part for name, part in sampled.items() if part.values}
        return cls(architecture, known, _first_weights(backbone, idle))

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
            missing = tuple(part.get("missing", ()))
            tensors = len(numbers) // _SAMPLES + len(missing)
            is_in_order = list(missing) == sorted(set(missing) & set(range(tensors)))
            if len(numbers) % _SAMPLES or not is_in_order:
                raise ValueError(f"tensors of the fingerprint's {name} do not add up")
            parts[str(name)] = PartSample(part["dtype"], tuple(numbers.tolist()), missing)
        return cls(architecture, parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        if not self.parts:
            return {"architecture": dict(self.architecture), "weights": list(self.first_weights)}
        parts = {
            name: {
                "dtype": part.dtype,
                "values": base64.b64encode(np.array(part.values, "<f4").tobytes()).decode(),
                **({"missing": list(part.missing)} if part.missing else {}),
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
        shared = [name for name in self.parts if name in other.parts]
        if not shared:
            logger.warning(
                "no weights can be compared, since they are quantised or offloaded: whether this is"
                " the same model is only checked by its sizes"
            )
        differing = [name for name in shared if not self.parts[name].is_same(other.parts[name])]
        if not differing:
            return None
        more = f" and {len(differing) - 1} more parts" if len(differing) > 1 else ""
        return f"other weights in its {differing[0]}{more}"


def _parts_of(
    backbone: Backbone, left_out: Collection[int]
) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Yield the parts of a model by names that do not depend on how its library names them."""
    model: Any = backbone.model
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    seen = set(left_out)

    def unseen(module: nn.Module) -> list[nn.Parameter]:
        fresh = [parameter for parameter in module.parameters() if id(parameter) not in seen]
        buffers = [buffer for buffer in module.buffers() if id(buffer) not in seen]
        seen.update(map(id, [*fresh, *buffers]))
        # Such a part has other tensors than it had before, so that the rest cannot be placed.
        is_repacked = is_quantised and any(map(_is_packed, [*fresh, *buffers]))
        return [] if is_repacked else fresh

    for index, layer in enumerate(backbone.layers):
        yield f"decoder layer {index}", unseen(layer)
    for name, getter in (("embeddings", "get_input_embeddings"), ("head", "get_output_embeddings")):
        module = getattr(model, getter)()
        yield name, unseen(module) if module is not None else []
    yield "vision tower, projector and norms", unseen(model)


def _is_quantised_in_place(tensor: Tensor) -> bool:
    return type(tensor).__module__.partition(".")[0] in _IN_PLACE


def _is_packed(tensor: Tensor) -> bool:
    """Return whether numbers are stored in fewer bits, by a library that adds tensors for them."""
    is_narrow = tensor.itemsize <= 4 and tensor.dtype != torch.bool and _dtype_of(tensor) is None
    return is_narrow and not _is_quantised_in_place(tensor)


def _dtype_of(tensor: Tensor) -> str | None:
    name = str(tensor.dtype).removeprefix("torch.")
    return name if name in _DTYPES else None


def _is_readable(parameter: nn.Parameter) -> bool:
    """Return whether weights are numbers of their own (not quantised) and are here."""
    is_plain = _dtype_of(parameter) is not None and not _is_quantised_in_place(parameter)
    return is_plain and not parameter.is_meta


@torch.no_grad()
def _sample(parameters: Iterable[nn.Parameter]) -> PartSample:
    values: list[Tensor] = []
    missing: list[int] = []
    dtypes: set[str] = set()
    for parameter in parameters:
        dtype = _dtype_of(parameter)
        if not parameter.numel() or (dtype is None and not _is_quantised_in_place(parameter)):
            continue
        if dtype is None or not _is_readable(parameter):
            missing.append(len(values) + len(missing))
            continue
        flat = parameter.detach().flatten()
        index = torch.arange(_SAMPLES) * (len(flat) - 1) // (_SAMPLES - 1)
        values.append(flat[index.to(flat.device)].float().cpu())
        dtypes.add(dtype)
    coarsest = next((name for name in _DTYPES if name in dtypes), "float32")
    numbers = tuple(torch.cat(values).tolist()) if values else ()
    return PartSample(coarsest, numbers, tuple(missing))


def _at(values: Tensor, places: list[int], wanted: Collection[int]) -> Tensor:
    """Return the values of the tensors at some places."""
    rows = [row for row, place in enumerate(places) if place in wanted]
    return values.view(-1, _SAMPLES)[rows]


def _first_weights(backbone: Backbone, left_out: Collection[int]) -> tuple[float, ...]:
    """Return what earlier versions kept of a model."""
    samples: list[float] = []
    for layer in backbone.layers:
        own = (parameter for parameter in layer.parameters() if id(parameter) not in left_out)
        matrix = next((parameter for parameter in own if parameter.dim() == 2), None)
        is_plain = matrix is not None and matrix.is_floating_point() and matrix.itemsize > 1
        if matrix is None or not is_plain or matrix.is_meta or _is_quantised_in_place(matrix):
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


def adapters_digest(editor: nn.Module, gate: nn.Module) -> str:
    """Return what tells adapters with a gate from others.

    Args:
        editor: whose tensors count, but for those of its own gate.
        gate: that is used in its place.
    """
    digest = hashlib.sha256()
    adapters = {name: t for name, t in editor.state_dict().items() if not name.startswith("gate.")}
    own = {f"gate.{name}": tensor for name, tensor in gate.state_dict().items()}
    for name, tensor in sorted({**adapters, **own}.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
