"""What PEFT adds to a model and what, as long as it is not trained, changes nothing in it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_COPY = "modules_to_save"
_ORIGINAL = "original_module"
_FACTORS = ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"})


@torch.no_grad()
def idle_parameters(model: nn.Module) -> set[int]:
    """Return the ids of PEFT's own parameters if none of them changes what the model computes.

    Low-rank matrices change nothing where one of the two is zero, as they begin; copies of layers
    that are to be trained, where they are equal to their originals. One that changes something
    makes another model of it, and then nothing is returned; likewise for what is not known here.
    """
    factors: dict[str, dict[str, list[Tensor]]] = {}
    idle: set[int] = set()
    for name, parameter in model.named_parameters():
        steps = name.split(".")
        if _COPY in steps:
            if not _is_copy(model, steps, parameter):
                return set()
            idle.add(id(parameter))
            continue
        step = next((step for step in steps if step.startswith("lora_")), None)
        if step is None:
            continue
        place = steps.index(step)
        # Its module and the adapter's name: one model may hold several.
        pair = ".".join([*steps[:place], *steps[place + 1 : place + 2]])
        factors.setdefault(pair, {}).setdefault(step, []).append(parameter)
        idle.add(id(parameter))
    return idle if all(map(_is_zero_product, factors.values())) else set()


def _is_copy(model: nn.Module, steps: list[str], parameter: Tensor) -> bool:
    place = steps.index(_COPY)
    path = ".".join([*steps[:place], _ORIGINAL, *steps[place + 2 :]])
    try:
        original = model.get_parameter(path)
    except AttributeError:
        return False
    is_here = not (parameter.is_meta or original.is_meta)
    return is_here and parameter.dtype == original.dtype and torch.equal(parameter, original)


def _is_zero_product(factors: Mapping[str, list[Tensor]]) -> bool:
    tensors = [tensor for given in factors.values() for tensor in given]
    # More than one tensor to a factor: it has a bias, which no factor that is zero takes away.
    is_known = set(factors) in _FACTORS and len(tensors) == len(factors)
    if not is_known or any(tensor.is_meta for tensor in tensors):
        return False
    is_finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
    return is_finite and any(not bool(tensor.any()) for tensor in tensors)
