"""Low-rank changes of a decoder's matrices: taught while the matrices stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANGED = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj")
"""Matrices of every layer that are changed."""


class ChangedLinear(nn.Module):
    """A frozen linear layer with a low-rank change, x -> W x + up (down x)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        """Begin with no change; ``down`` [rank, in] is random, ``up`` [out, rank] zero."""
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.is_on = True

    def forward(self, states: Tensor) -> Tensor:
        """Return the changed layer's output, or the frozen one's while switched off."""
        frozen: Tensor = self.base(states)
        if not self.is_on:
            return frozen
        narrow = functional.linear(states, self.down.to(states.dtype))
        return frozen + functional.linear(narrow, self.up.to(states.dtype))


class Changes(nn.Module):
    """All low-rank changes of a decoder."""

    def __init__(self, decoder: Any, rank: int) -> None:
        """Put a change in place of every matrix of ``CHANGED``, and freeze everything else."""
        super().__init__()
        decoder.requires_grad_(False)
        self._places: list[tuple[nn.Module, str, str]] = []
        self.layers = nn.ModuleList()
        for number, layer in enumerate(decoder.layers):
            for name in CHANGED:
                owner_name, attribute = name.rsplit(".", 1)
                owner = layer.get_submodule(owner_name)
                changed = ChangedLinear(getattr(owner, attribute), rank)
                setattr(owner, attribute, changed)
                self._places.append((owner, attribute, f"layers.{number}.{name}"))
                self.layers.append(changed)

    def matrices(self) -> list[nn.Parameter]:
        """Return all matrices that are taught."""
        return [each for layer in self.layers for each in (layer.down, layer.up)]  # type: ignore[misc]

    def state_dict(  # type: ignore[override]
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the changes by name, without the frozen matrices."""
        del args, kwargs
        return {
            f"{name}.{part}": getattr(layer, part).detach().clone()
            for (_, _, name), layer in zip(self._places, self.layers, strict=True)
            for part in ("down", "up")
        }

    def load_state_dict(self, state: Any, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Take changes as ``state_dict`` or a file of shipped weights gives them."""
        del args, kwargs
        with torch.no_grad():
            for (_, _, name), layer in zip(self._places, self.layers, strict=True):
                for part in ("down", "up"):
                    getattr(layer, part).copy_(state[f"{name}.{part}"])

    @contextmanager
    def off(self) -> Iterator[None]:
        """Answer as the frozen decoder within the block."""
        for layer in self.layers:
            layer.is_on = False  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer in self.layers:
                layer.is_on = True  # type: ignore[assignment]

    def remove(self) -> None:
        """Put the frozen matrices back in their places."""
        for (owner, attribute, _), layer in zip(self._places, self.layers, strict=True):
            setattr(owner, attribute, layer.base)
