"""Says what bounds a piece of work: the shares of its time, in percent."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from torch.profiler import ProfilerActivity, profile

from benchmarks.clock import Clock
from easyedit_dualedit.method.editor import DualEditor

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "addbmm", "mkldnn_convolution", "cudnn_convolution")
_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention")
_REST = "Python and everything else"


def shares_of(call: Callable[[], Any], clock: Clock, runs: int) -> dict[str, float]:
    """Return the shares of kinds of operations in the time on the wall."""
    activities = [ProfilerActivity.CPU]
    if clock.is_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        start = clock.now()
        for _ in range(runs):
            call()
        _, wall = clock.since(start)
    spent = {"matrix products": 0.0, "attention": 0.0, "element by element, copies": 0.0}
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            own = event.self_device_time_total if clock.is_gpu else event.self_cpu_time_total
            spent[_kind(event.key.removeprefix("aten::"))] += own / 1e3
    return _percent(spent, wall)


def parts_of_an_edit(
    editor: DualEditor, edit: Callable[[], Any], clock: Clock, runs: int
) -> dict[str, float]:
    """Return the shares of the parts that an edit goes through."""
    model: Any = editor.backbone.model
    owners = {
        "image processing": (type(editor.encoder.processor.image_processor), "__call__"),
        "tokenising": (type(editor.encoder.tokenizer), "__call__"),
        "vision tower": (model.model.vision_tower, "forward"),
        "decoder": (editor.backbone.decoder, "forward"),
    }
    spent = dict.fromkeys(owners, 0.0)
    with ExitStack() as stack:
        for part, (owner, name) in owners.items():
            stack.enter_context(_timed(owner, name, clock, spent, part))
        start = clock.now()
        for _ in range(runs):
            edit()
        total = clock.busy(clock.since(start))
    return _percent(spent, total)


@contextmanager
def _timed(
    owner: Any, name: str, clock: Clock, spent: dict[str, float], part: str
) -> Iterator[None]:
    real = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock.now()
        try:
            return real(*args, **kwargs)
        finally:  # the decoder is ended by an exception
            spent[part] += clock.busy(clock.since(start))

    with patch.object(owner, name, timed):
        yield


def _kind(operation: str) -> str:
    if operation in _PRODUCTS:
        return "matrix products"
    if any(name in operation for name in _ATTENTION):
        return "attention"
    return "element by element, copies"


def _percent(spent: dict[str, float], total: float) -> dict[str, float]:
    shares = {name: round(100 * time / total, 1) for name, time in spent.items()}
    return shares | {_REST: round(100 - sum(shares.values()), 1)}
