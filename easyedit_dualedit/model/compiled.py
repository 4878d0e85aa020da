"""torch.compile: layers that it makes code of for us, and a model that it has made code of.

The code of a compiled model was made without our hooks and does not run them.
"""

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import nn

from easyedit_dualedit.errors import BackboneError

logger = logging.getLogger(__name__)

ModuleForward = Callable[..., Any]


def compiled(real: ModuleForward) -> ModuleForward:
    """Return a forward that torch.compile has made code for; `real` where it cannot.

    The code of a module is made once, and serves all its later calls.
    """
    module = getattr(real, "__self__", None)
    if not isinstance(module, nn.Module):  # somebody has put a forward of theirs into it
        return real
    made = _COMPILED.get(module)
    if made is None:
        made = _COMPILED[module] = _or_real(torch.compile(_unbound(module), dynamic=True), module)
    return made


_COMPILED: MutableMapping[nn.Module, ModuleForward] = WeakKeyDictionary()


def _unbound(module: nn.Module) -> ModuleForward:
    # What holds a module strongly would never let go of it.
    reference, run = ref(module), type(module).forward
    return lambda *args, **kwargs: run(reference(), *args, **kwargs)


def _or_real(fast: ModuleForward, module: nn.Module) -> ModuleForward:
    # Not before it is asked for: it takes a second and 80 MiB.
    from torch._dynamo.exc import TorchDynamoException

    reference, run = ref(module), type(module).forward
    works = True

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal works
        if works:
            try:
                return fast(*args, **kwargs)
            except TorchDynamoException as error:  # no compiler for C++, say
                works = False
                line = " ".join(str(error).split())[:200]
                logger.warning("layers run as they are, not compiled: %s", line)
        return run(reference(), *args, **kwargs)

    return forward


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run a model that is compiled as it is written inside the block; say so the first time.

    Raises:
        BackboneError: inside a function that torch.compile has compiled.
    """
    if model not in _WARNED:
        _WARNED.add(model)
        logger.warning(
            "%s is compiled by torch.compile; where an edit may apply it runs uncompiled, elsewhere"
            " compiled as ever",
            type(model).__name__,
        )
    _EAGER.enter()
    try:
        yield
    finally:
        _EAGER.leave()


_WARNED: WeakSet[nn.Module] = WeakSet()


class _EagerStance:
    """torch's stance towards compiled code, which is one for the process; blocks may overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._stance: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._blocks:
                try:
                    self._stance = torch.compiler.set_stance("force_eager")
                except RuntimeError as error:
                    raise BackboneError(
                        "the model is compiled by torch.compile, and so is what calls it edited;"
                        " compile one of them alone, the model"
                    ) from error
            self._blocks += 1

    def leave(self) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks:
                self._stance.__exit__(None, None, None)


_EAGER = _EagerStance()
