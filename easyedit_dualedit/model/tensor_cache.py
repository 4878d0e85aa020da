"""Tensors that are kept for as long as they fit into a budget of memory."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor


class TensorCache:
    """Values by key. A value is a tensor, or a list, tuple or dictionary of values.

    Tensors come back with the same bits, on the same device; anything else as it was.
    """

    def __init__(self, budget: int, *, stays: bool = False):
        """Keep at most `budget` bytes of tensors.

        Args:
            budget: bytes.
            stays: once it is full, keep what is held instead of what comes. Where values are asked
                for over and over in random order, and a few of them fit, those few are then found
                each time; else each is overwritten before it is asked for again.
        """
        self.budget = budget
        self.stays = stays
        self.size = 0
        """Bytes of tensors held."""
        self._held: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        """Return the value that is held for a key, or None."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, value: Any) -> None:
        """Hold a copy of a value, if it fits at all; a key that is held already stays as it is."""
        size = size_of(value)
        if size > self.budget or key in self._held:
            return
        if self.stays and self.size + size > self.budget:
            return
        while self.size + size > self.budget:
            self.size -= size_of(self._held.popitem(last=False)[1])
        self._held[key] = _copied(value)
        self.size += size

    def __len__(self) -> int:
        """Return the number of keys held."""
        return len(self._held)


def size_of(value: Any) -> int:
    """Return the bytes of the tensors in a value."""
    return sum(tensor.nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _copied(value: Any) -> Any:
    # A part of a larger tensor would keep all of it alive.
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
