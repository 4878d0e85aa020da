"""A gate whose weights are loaded: its learned parts take the forms of those that are."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from easyedit_dualedit.method.gate_keys import KEY_WIDTH, GateForm, GateProjection, TextKeys

logger = logging.getLogger(__name__)


def prepare_learned(gate: Any, tensors: dict[str, Tensor], prefix: str, *_rest: object) -> None:
    """Give a `Gate` a projection of the form that is about to be loaded, and text keys if there
    are any.

    A projection of version 0.1, which read no image tokens, is dropped: it cannot be used any more.
    """
    size = len(gate.mean)
    names = [name for name in tensors if name.startswith(f"{prefix}projection.")]
    if f"{prefix}projection.threshold" in tensors:
        for name in names:
            del tensors[name]
        fresh = GateProjection(size).state_dict()
        tensors.update({f"{prefix}projection.{name}": value for name, value in fresh.items()})
    elif names:
        start = f"{prefix}projection.layers."
        form = _form_of({name.removeprefix(start): tensors[name] for name in names})
        if form != gate.projection.form:
            gate.projection = _like(gate, GateProjection(size, form))
    gate.text = _text_keys(gate, tensors, f"{prefix}text.")


def _text_keys(gate: Any, tensors: dict[str, Tensor], prefix: str) -> TextKeys | None:
    """Return text keys that can take those of `tensors`; None if there are none."""
    if not any(name.startswith(prefix) for name in tensors):
        return None
    # The first of version 0.1 had no weights, later ones did not look at letters.
    tensors.setdefault(f"{prefix}letters", gate.mean.new_zeros(()))
    weights = tensors.setdefault(f"{prefix}weights", gate.mean.new_empty(0))
    if gate.text is not None and len(gate.text.weights) == len(weights):
        return gate.text  # type: ignore[no-any-return]
    return _like(gate, TextKeys(len(gate.mean), len(weights)))  # type: ignore[no-any-return]


def _like(gate: Any, made: Any) -> Any:
    """Return a part of a gate on the device and in the dtype of what the gate has."""
    before = next(gate.projection.parameters())
    return made.to(before.device, before.dtype).requires_grad_(before.requires_grad)


def _form_of(layers: Mapping[str, Tensor]) -> GateForm:
    """Return the form that tensors of `layers` are of; whether they are whole shows later."""
    if "2.weight" in layers:
        return "two-layer"
    width = layers["0.weight"].shape[:1] if "0.weight" in layers else ()
    return "linear-pair" if width == (2 * KEY_WIDTH,) else "linear"


def warn_of_fallback(gate: Any, _keys: object) -> None:
    """Say so where another kind decides in place of a `learned` gate that is not trained."""
    if gate.kind != gate.config.kind:
        logger.warning(
            "the weights hold no trained %s gate; the %s gate decides instead",
            gate.config.kind,
            gate.kind,
        )
