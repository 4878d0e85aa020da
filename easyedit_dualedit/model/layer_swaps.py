"""Lets parts of a decoder stand in for themselves: skipped, run at some positions, or run again.

A part keeps its place in the model, so that the model's own forward calls it as ever.
"""

import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

logger = logging.getLogger(__name__)

_BY_POSITION = ("mlp", "q_proj", "o_proj", "out_proj", "fc1", "fc2")
"""Parts of a decoder layer that treat every position alone."""

ModuleForward = Callable[..., Any]


@contextmanager
def skipped(layers: Sequence[nn.Module], last: int, states: Tensor) -> Iterator[None]:
    """Let layers up to `last` cost nothing inside the block; `last` gives `states`."""

    def giving(result: Tensor | None) -> Callable[[ModuleForward], ModuleForward]:
        def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return hidden_states if result is None else result

        return lambda _real: forward

    with ExitStack() as stack:
        for index in range(last + 1):
            given = giving(states if index == last else None)
            stack.enter_context(replaced(layers[index], given))
        yield


@contextmanager
def kept(layer: nn.Module, index: Tensor) -> Iterator[None]:
    """Let a layer's output inside the block be right at some positions alone, and cost less.

    Attention still reads every position. Nothing above the layer may mix positions.

    Args:
        layer: a decoder layer.
        index: the positions, flat over rows and slots, long [n].
    """

    def at_index(real: ModuleForward) -> ModuleForward:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            flat = states.flatten(0, -2)
            here = index.to(flat.device)  # a model may be spread over devices
            part = real(flat[None, here], *args, **kwargs)
            if not isinstance(part, Tensor):
                return real(states, *args, **kwargs)
            whole = part.new_zeros(len(flat), part.shape[-1]).index_copy(0, here, part[0])
            return whole.view(*states.shape[:-1], -1)

        return forward

    with ExitStack() as stack:
        for part in _by_position(layer):
            stack.enter_context(replaced(part, at_index))
        yield


def _by_position(module: nn.Module) -> Iterator[nn.Module]:
    for name, part in module.named_children():
        if name in _BY_POSITION:
            yield part
        else:
            yield from _by_position(part)


def recomputed(real: ModuleForward) -> ModuleForward:
    """Return a forward that keeps only its inputs for the gradient, and runs again for the rest."""
    return lambda *args, **kwargs: checkpoint(real, *args, use_reentrant=False, **kwargs)


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


def trimmed(layer: nn.Module, index: Tensor) -> Callable[[ModuleForward], ModuleForward]:
    """Return what makes a layer's forward one that is right at some positions alone; see `kept`."""

    def wrap(real: ModuleForward) -> ModuleForward:
        # Inside the call, so that it holds too when the layer runs again for its gradient.
        def forward(*args: Any, **kwargs: Any) -> Any:
            with kept(layer, index):
                return real(*args, **kwargs)

        return forward

    return wrap


@contextmanager
def replaced(module: Any, wrap: Callable[[ModuleForward], ModuleForward]) -> Iterator[None]:
    """Give a module another forward inside the block, for the thread that opened it.

    Blocks of several threads may overlap: each sees its own, and the last to end leaves the module
    as the first found it.
    """
    thread = threading.get_ident()
    with _LOCK:
        standing = vars(module).get("forward")
        if not isinstance(standing, _ByThread):
            standing = _ByThread(module.forward, standing)
        before = standing.of.get(thread)
        standing.of[thread] = wrap(before or standing.real)
        module.forward = standing
    try:
        yield
    finally:
        with _LOCK:
            if before is not None:
                standing.of[thread] = before
            else:
                del standing.of[thread]
            if not standing.of and standing.own is None:
                del module.forward
            elif not standing.of:  # accelerate has put its own there
                module.forward = standing.own


_LOCK = threading.Lock()


class _ByThread:
    """The forward of a module, which may be another in some threads."""

    def __init__(self, real: ModuleForward, own: ModuleForward | None):
        """Stand in for a forward.

        Args:
            real: what all other threads run.
            own: what the module itself holds of it, other than its class.
        """
        self.real = real
        self.own = own
        self.of: dict[int, ModuleForward] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward of this thread."""
        return self.of.get(threading.get_ident(), self.real)(*args, **kwargs)
