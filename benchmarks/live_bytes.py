"""Counts the bytes of tensors that are alive at once, on whatever device; meta tensors too."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts what operations inside the block make and nobody has let go of yet."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Count nothing yet.

        Args:
            known: tensors that were there before; views of them are none that count.
        """
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self.now = 0
        self.peak = 0
        """The most that was alive at once."""
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run an operation, and count the storages of its results."""
        made = func(*args, **(kwargs or {}))
        for value in tree_iter(made):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes and key not in self._known:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)
