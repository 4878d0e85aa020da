"""Reads and changes the outputs of decoder layers for as long as a `with` block lasts.

Nothing here knows about edits, gates or adapters. A failure half-way leaves no hook behind, and
only our own are ever removed.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

LayerEdit = Callable[[Tensor], Tensor | None]
"""Takes a layer's output, shape [b, s, d]; returns what replaces it, or None to leave it."""

CallObserver = Callable[[tuple[Any, ...], dict[str, Any]], None]
"""Sees the positional and keyword arguments of a model call before it runs."""


_REGISTRY = threading.Lock()
"""Held while a hook is put on or taken off.

torch numbers hooks with a counter that two threads may read before either has raised it: one hook
would then take the place of the other.
"""


class _Stop(Exception):  # noqa: N818  (control flow, not an error)
    """Ends a forward once everything asked of it has been read."""


class Hooks:
    """Hooks that are there until a `with` block ends, however it does."""

    def __init__(self) -> None:
        """Register nothing yet."""
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hooks, and none but them."""
        self.remove()

    def change(self, layer: nn.Module, edit: LayerEdit) -> None:
        """Change the output of a layer, in forwards of the thread that calls this."""
        with _REGISTRY:
            self._handles.append(layer.register_forward_hook(_changing(edit)))

    def read(self, layer: nn.Module, hook: Callable[[nn.Module, Any, Any], None]) -> None:
        """Show each output of a layer to a hook of torch's kind."""
        with _REGISTRY:
            self._handles.append(layer.register_forward_hook(hook))

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


@contextmanager
def attach(layers: Sequence[nn.Module], edits: Mapping[int, LayerEdit]) -> Iterator[None]:
    """Change the outputs of `layers` with `edits` (layer index -> change) inside the block.

    Only forwards of the thread that opened the block are changed.
    """
    with Hooks() as hooks:
        for index, edit in edits.items():
            hooks.change(layers[index], edit)
        yield


@contextmanager
def before_call(model: nn.Module, observe: CallObserver) -> Iterator[None]:
    """Show the arguments of every call of `model` inside the block to `observe`."""
    with Hooks() as hooks:
        hooks.before(model, observe)
        yield


@contextmanager
def record(
    layers: Sequence[nn.Module], indices: Sequence[int], *, stop: bool = False
) -> Iterator[dict[int, Tensor]]:
    """Yield a dictionary that fills with layer index -> output, shape [b, s, d].

    Args:
        layers: decoder layers of the model that runs inside the block.
        indices: layers to read.
        stop: end the forward after the deepest of them: later layers and the lm_head do not run,
            and the block ends where the model was called.
    """
    states: dict[int, Tensor] = {}
    deepest = max(indices)
    signal = _Stop()
    with Hooks() as hooks:
        for index in indices:
            ending = signal if stop and index == deepest else None
            hooks.read(layers[index], _reading(states, index, ending))
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
    training = [part for part in parts if part.training]
    offsets = [(part, part.rope_deltas) for part in parts if "rope_deltas" in vars(part)]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for part, offset in offsets:
            part.rope_deltas = offset


# Factories, since a closure made in a loop would see the loop's last values.
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


def _reading(
    states: dict[int, Tensor], index: int, ending: _Stop | None
) -> Callable[[nn.Module, Any, Any], None]:
    owner = threading.get_ident()

    def hook(_module: nn.Module, _args: Any, output: Any) -> None:
        if threading.get_ident() != owner:
            return
        states[index] = _hidden(output)
        if ending is not None:
            raise ending

    return hook


def _hidden(output: Any) -> Tensor:
    # Decoder layers return a tensor in transformers 5 and a tuple in older ones.
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
