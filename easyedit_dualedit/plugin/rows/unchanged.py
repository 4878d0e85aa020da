"""Puts a model back as it was, whatever a method of EasyEdit's has done to it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back all that a model is made of afterwards, whatever was done to it.

    These are its modules, parameters, buffers, hooks, attributes, configurations, and what its
    parameters require and hold by reference: values written into a parameter in place stay.
    """
    holders: dict[int, dict[Any, Any]] = {}

    def hold(values: dict[Any, Any]) -> None:
        holders[id(values)] = values
        for value in list(values.values()):
            if isinstance(value, dict):
                holders[id(value)] = value
            elif _is_config(value) and id(vars(value)) not in holders:
                hold(vars(value))

    for module in model.modules():
        hold(vars(module))
    contents = [(values, dict(values)) for values in holders.values()]
    parameters = [(p, p.data, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for values, content in contents:
            values.clear()
            values.update(content)
        for parameter, data, required, gradient in parameters:
            parameter.data = data
            parameter.requires_grad_(required)
            parameter.grad = gradient


def _is_config(value: Any) -> bool:
    return not isinstance(value, nn.Module) and hasattr(value, "to_diff_dict")
