"""A pretended accelerator: tensors that say `gpu:0` while their numbers lie on the CPU.

Operations that PyTorch refuses between a GPU and the CPU raise here too, so that code which would
stop on a GPU stops in a test on a machine without one. It tells where tensors are, and nothing of a
GPU's numbers, memory or speed; `benchmarks.device` tries those on a real one.

    with pretended_device() as device:
        model.to(device)
        ...                          # raises where tensors of two devices meet
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

CAN_PRETEND = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
"""Whether the installed torch can have a device that is written in Python."""

NAME = "gpu"
_aten = torch.ops.aten
_FACTORIES = (torch.tensor, torch.as_tensor, torch.asarray)
"""They turn values into tensors beneath all that Python can see."""
_INDEXED = (_aten.index, _aten._unsafe_index)
_INDEXED_WRITES = (_aten.index_put, _aten.index_put_, _aten._index_put_impl_)
_FILLS = (_aten.masked_fill, _aten.masked_fill_, _aten.index_fill, _aten.index_fill_)
_FREE = (_aten.copy_, _aten.fill, _aten.fill_)
"""They take their second argument from wherever it is; a fill takes one number."""


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met in an operation that takes one."""


class PretendedTensor(Tensor):
    """A tensor on the pretended device, around one on the CPU that has its numbers."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "PretendedTensor":
        """Return a tensor that shares memory with `numbers`."""
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            layout=numbers.layout,
            device=torch.device(NAME, 0),
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"on {NAME}: {self.numbers!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Files of torch are read with `map_location` here, which brings any device to the CPU.
        return self.numbers.__reduce_ex__(protocol)

    @property
    def data(self) -> Tensor:
        """The tensor without its gradient."""
        return self.detach()

    @data.setter
    def data(self, other: "PretendedTensor") -> None:
        Tensor.data.__set__(self, other)
        self.numbers = other.numbers

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def numpy(self, *_args: Any, **_kwargs: Any) -> Any:
        raise TypeError(f"a tensor on {NAME} is no array of numpy's; use Tensor.cpu() first")

    def new_tensor(self, values: Any, *, dtype: Any = None, device: Any = None) -> Tensor:
        return torch.tensor(values, dtype=dtype or self.dtype, device=device or self.device)


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Give the device; within the block, tensors can be made on it and moved to it and back."""
    _register()
    with _Factories(), _Operations():
        yield torch.device(NAME, 0)


def start_autograd() -> None:
    """Have autograd know the device: a process's first backward pass starts all its queues."""
    if CAN_PRETEND:
        with pretended_device() as device:
            torch.ones(1).to(device).requires_grad_().sum().backward()


class _Factories(TorchFunctionMode):
    def __torch_function__(
        self, called: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if called not in _FACTORIES or isinstance(args[0], Tensor):
            return called(*args, **kwargs)
        device = kwargs.pop("device", None)
        made = called(*map(_real, args), **kwargs)
        return (
            made if device is None else made.detach().to(device).requires_grad_(made.requires_grad)
        )


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return what an operation gives on the CPU, on the device that its arguments are on."""
    values = _leaves(args)
    if kwargs:
        values += _leaves(kwargs.values())
    tensors = [each for each in values if isinstance(each, Tensor)]
    there = count = sum(isinstance(each, PretendedTensor) for each in tensors)
    if 0 < count < len(tensors):
        _require_allowed(operation, args, tensors)
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type == NAME
    if there and any(isinstance(each, torch.Generator) for each in values):
        raise MixedDevicesError(f"{operation}: a generator on the CPU, for numbers on {NAME}")
    done = operation(*map(_real, args), **{name: _real(each) for name, each in kwargs.items()})
    # What an operation has changed in place is the very tensor that it was given.
    given = {id(_real(each)): each for each in tensors}

    def placed(each: Any) -> Any:
        if isinstance(each, list | tuple):
            return type(each)(map(placed, each))
        if not isinstance(each, Tensor):
            return each
        if id(each) in given:
            return given[id(each)]
        return PretendedTensor(each) if there else each

    return placed(done)


def _leaves(values: Iterable[Any]) -> list[Any]:
    """Return values, those in lists one by one."""
    found = []
    for each in values:
        if isinstance(each, list | tuple):
            found += _leaves(each)
        else:
            found.append(each)
    return found


def _real(each: Any) -> Any:
    """Return what stands for a value on the CPU; lists in part."""
    if isinstance(each, PretendedTensor):
        return each.numbers
    if isinstance(each, list | tuple):
        return type(each)(map(_real, each))
    if isinstance(each, torch.device) and each.type == NAME:
        return torch.device("cpu")
    return each


def _require_allowed(operation: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raise unless PyTorch lets tensors of two devices meet in an operation.

    Args:
        operation: with its overload.
        args: positional ones, in the order of its schema.
        tensors: all tensors among its arguments.

    Raises:
        MixedDevicesError: if it does not.
    """
    kind = operation.overloadpacket
    if kind in _FREE:
        return
    if kind in _INDEXED or kind in _INDEXED_WRITES:
        # Indices may come from the CPU; values that are written too, if they are one number.
        alike = [args[0], *(args[2:3] if kind in _INDEXED_WRITES else ())]
        if not _are_on_gpu(args[0]):
            alike += [index for index in args[1] if index is not None]
    else:
        alike = list(tensors)
    numbers = [each for each in alike if each.dim() == 0 and not _are_on_gpu(each)]
    if kind in (*_FILLS, *_INDEXED_WRITES) or torch.Tag.pointwise in operation.tags:
        written = [a for a, b in zip(args, operation._schema.arguments, strict=False) if b.is_write]
        spare = [each for each in numbers if not any(each is one for one in written)]
        if kind is _aten.where or len(spare) <= 1:
            alike = [each for each in alike if not any(each is one for one in spare)]
    if len({_are_on_gpu(each) for each in alike}) == 2:
        found = ", ".join(f"{list(each.shape)} on {each.device}" for each in alike)
        raise MixedDevicesError(f"{operation} takes tensors of one device, not {found}")


def _are_on_gpu(tensor: Tensor) -> bool:
    return isinstance(tensor, PretendedTensor)


class _Module:
    """What `torch.gpu` is: a device with no state of its own, which no library finds by itself."""

    def device_count(self) -> int:
        return 0

    def is_available(self) -> bool:
        return False

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Do nothing: numbers are drawn on the CPU."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        # So that autocast can be turned off; of a device in Python it cannot be turned on.
        return [torch.bfloat16]


@functools.cache
def _register() -> None:
    """Give torch the name of the device, which cannot be taken back."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
