"""Reads and changes what modules of a model give for as long as a `with` block lasts.

`Hooks` see the outputs of decoder layers, or change them; `replaced` gives a module another
forward. Nothing here knows about edits, gates or adapters. A failure half-way leaves no hook
behind, and only our own are ever removed.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.compiled import ModuleForward, uncompiled

LayerEdit = Callable[[Tensor], Tensor | None]
"""Takes a layer's output, shape [b, s, d]; returns what replaces it, or None to leave it."""

CallObserver = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Sees the positional and keyword arguments of a model call before it runs."""

_REGISTRY = threading.Lock()
"""Held while a hook is put on or taken off: torch numbers hooks with a counter that two threads may
read before either has raised it, and one hook would then take the place of the other."""

_UNCHECKPOINTED: dict[nn.Module, int] = {}
"""Layer that keeps its activations for now -> how many want it."""

_READ: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
"""Model that is read for now -> how many read it, and its parts that are in training otherwise."""


def _recomputes_its_hooks(layer: nn.Module) -> bool:
    """Return whether a layer runs again in the backward, and its hooks with it.

    Ours are gone by then. Up to transformers 5.5 layers checkpoint their call, later their forward.
    """
    is_on = getattr(layer, "gradient_checkpointing", False) or layer in _UNCHECKPOINTED
    return is_on and type(layer).__call__ is not nn.Module.__call__


class _Stop(Exception):  # noqa: N818  (control flow, not an error)
    """Ends a forward once everything asked of it has been read."""


class Hooks:
    """Hooks that are there until a `with` block ends, however it does."""

    def __init__(self) -> None:
        """Register nothing yet."""
        self._handles: list[RemovableHandle] = []
        self._recomputed: list[nn.Module] = []

    def __bool__(self) -> bool:
        """Return whether there are hooks."""
        return bool(self._handles)

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hooks, and none but them."""
        self.remove()

    def change(self, layer: nn.Module, edit: LayerEdit) -> None:
        """Change the output of a layer, in forwards of the thread that calls this."""
        with _REGISTRY:
            if _recomputes_its_hooks(layer):
                self._recomputed.append(layer)
                _UNCHECKPOINTED[layer] = _UNCHECKPOINTED.get(layer, 0) + 1
                layer.gradient_checkpointing = False  # type: ignore[assignment]
            # Before all others: those by which transformers records hidden states, and the user's,
            # then see what the next layer gets.
            hook = _changing(edit)
            self._handles.append(layer.register_forward_hook(hook, prepend=True))

    def read(self, layer: nn.Module, hook: Callable[..., None], *, last: bool = False) -> None:
        """Show a layer's outputs, in this thread: as `change` sees them, or after all hooks."""
        owner = threading.get_ident()

        def mine(*given: Any) -> None:
            if threading.get_ident() == owner:
                hook(*given)

        with _REGISTRY:
            self._handles.append(layer.register_forward_hook(mine, prepend=not last))

    def narrow(self, module: nn.Module, hook: Callable[[nn.Module, Any], Any]) -> None:
        """Let a hook of torch's kind replace the positional arguments of a module."""
        with _REGISTRY:
            self._handles.append(module.register_forward_pre_hook(hook))

    def before(self, model: nn.Module, observe: CallObserver) -> None:
        """Show the arguments of every call of `model`, in the thread that calls this."""
        owner = threading.get_ident()

        # torch stores a hook first and then that it takes keyword arguments: a call by another
        # thread may come in between, or while both are removed, and brings none.
        def hook(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
        ) -> None:
            if threading.get_ident() == owner:
                observe(args, kwargs or {})

        with _REGISTRY:
            self._handles.append(model.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Remove the hooks, and none but them."""
        with _REGISTRY:
            while self._handles:
                self._handles.pop().remove()
            while self._recomputed:
                layer = self._recomputed.pop()
                _UNCHECKPOINTED[layer] -= 1
                if not _UNCHECKPOINTED[layer]:
                    del _UNCHECKPOINTED[layer]
                    layer.gradient_checkpointing = True  # type: ignore[assignment]


@contextmanager
def attach(layers: Sequence[nn.Module], edits: Mapping[int, LayerEdit]) -> Iterator[None]:
    """Change the outputs of `layers` with `edits` (layer index -> change), in this thread alone."""
    with Hooks() as hooks:
        for index, edit in edits.items():
            hooks.change(layers[index], edit)
        yield


def named_arguments(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional arguments of a model's forward by their names."""
    if not args:
        return {}  # as transformers calls its models; reading a signature takes long
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    # A wrapper may hide the parameters of the model in it.
    return dict(zip(names or ["input_ids"], args, strict=False))


@contextmanager
def record(
    layers: Sequence[nn.Module],
    indices: Sequence[int],
    *,
    stop: bool = False,
    first: bool = False,
) -> Iterator[dict[int, Tensor]]:
    """Yield a dictionary that fills with layer index -> output, shape [b, s, d].

    Args:
        layers: decoder layers of the model that runs inside the block.
        indices: layers to read.
        stop: end the forward after the deepest of them: later layers and the lm_head do not run,
            and the block ends where the model was called.
        first: keep what the first forward inside the block gives; otherwise what the last gives.
    """
    states: dict[int, Tensor] = {}
    deepest = max(indices, default=-1)
    signal = _Stop()
    with Hooks() as hooks:
        for index in indices:
            hooks.read(layers[index], partial(_keep, states, index, first))
        if stop and indices:
            hooks.read(layers[deepest], partial(_end, signal), last=True)
        try:
            yield states
        except _Stop as stopped:
            if stopped is not signal:
                raise
        finally:
            # Its frames hold it and the tensors of whole forwards: a cycle that only the garbage
            # collector would undo, many steps later.
            signal.__traceback__ = None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Let a model be read inside the block without a trace, and without dropout.

    Somebody may be decoding with it by hand: Qwen's models keep the offset of positions of their
    last prompt (`rope_deltas`), which the next token's call reads.
    """
    parts = list(model.modules())
    offsets = [(part, part.rope_deltas) for part in parts if "rope_deltas" in vars(part)]
    with _REGISTRY:
        readers, training = _READ.get(model, (0, [part for part in parts if part.training]))
        _READ[model] = readers + 1, training
        for part in training:
            part.training = False
    try:
        with eager(parts):
            yield
    finally:
        with _REGISTRY:
            readers, _ = _READ.pop(model)
            if readers > 1:
                _READ[model] = readers - 1, training
            for part in training if readers == 1 else ():
                part.training = True
        for part, offset in offsets:
            part.rope_deltas = offset


@contextmanager
def eager(parts: Sequence[nn.Module], layers: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Run a model as it is written inside the block, where torch.compile has made code of it.

    Such code was made without our hooks, and does not run them. Meanwhile other threads run theirs
    as it is written, too.

    Args:
        parts: the model, and the modules in it that hold the layers.
        layers: those that may have hooks.

    Raises:
        BackboneError: inside a function that torch.compile has compiled.
    """
    # If dynamo is not even imported, nothing can have been compiled.
    if "torch._dynamo" not in sys.modules or not (
        any(_is_compiled(part) for part in parts)
        # A layer's hooks run around its forward: that one may be compiled.
        or any(vars(layer).get("_compiled_call_impl") is not None for layer in layers)
    ):
        yield
        return
    with uncompiled(parts[0]):
        yield


def in_own_precision(device: torch.device) -> AbstractContextManager[object]:
    """Return a block in which autocast changes no dtype of operations on a device."""
    # Where there is none to turn off, to do so still takes as long as several operations.
    is_on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if is_on else nullcontext()


@contextmanager
def lasting_tensors() -> Iterator[None]:
    """Make tensors inside the block that a backward may keep, even in inference mode."""
    records = torch.is_grad_enabled()
    # To leave inference mode turns gradients on.
    with torch.inference_mode(False), torch.set_grad_enabled(records):
        yield


def _is_compiled(module: nn.Module) -> bool:
    state = vars(module)
    return (
        state.get("_compiled_call_impl") is not None
        or hasattr(state.get("forward"), "_torchdynamo_orig_callable")
        # A compiled module that somebody has put in the place of a child.
        or any("_orig_mod" in vars(child)["_modules"] for child in module.children())
    )


def _changing(edit: LayerEdit) -> Callable[[nn.Module, Any, Any], Any]:
    owner = threading.get_ident()

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if threading.get_ident() != owner:
            return None
        changed = edit(_hidden(output))
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


def _keep(
    states: dict[int, Tensor], index: int, first: bool, _module: nn.Module, _args: Any, output: Any
) -> None:
    if not (first and index in states):
        states[index] = _hidden(output)


def _end(signal: _Stop, *_given: Any) -> None:
    raise signal


def _hidden(output: Any) -> Tensor:
    # Decoder layers return a tensor in transformers 5 and a tuple in older ones.
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.dim() != 3:
        raise BackboneError(
            f"a decoder layer of this model gives states of shape {list(hidden.shape)}, but an edit"
            " needs one state for each token, [rows, tokens, hidden size]: it cannot be edited"
        )
    return hidden


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
