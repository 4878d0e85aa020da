"""Counts the work of a piece of code: what does not depend on how busy a machine is."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.backbone import Backbone


@dataclass
class Work:
    """Modules that ran."""

    decoder_layers: int = 0
    """Calls of decoder layers that computed something."""
    frozen_rows: int = 0
    """Rows through the first decoder layer: sequences whose frozen part was computed."""
    lm_head: int = 0
    lm_head_positions: int = 0
    vision: int = 0
    """Pictures through the vision tower."""
    bytes_written: int | None = None
    """That this process sent to storage; None where the system does not tell."""


@contextmanager
def counted(backbone: Backbone) -> Iterator[Work]:
    """Yield the work that the model does inside the block."""
    work = Work()

    def attention(_module: Any, _args: Any, output: Any, *, first: bool) -> None:
        work.decoder_layers += 1
        if first:
            work.frozen_rows += len(output[0])

    def head(_module: Any, args: tuple[Any, ...]) -> None:
        work.lm_head += 1
        work.lm_head_positions += args[0].numel() // args[0].shape[-1]

    def tower(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        work.vision += len(kwargs["pixel_values"] if "pixel_values" in kwargs else _args[0])

    model: Any = backbone.model
    with ExitStack() as stack:
        for index, layer in enumerate(backbone.layers):
            # A layer that is passed over is called, but its attention is not.
            part: Any = layer.self_attn

            def seen(m: Any, a: Any, o: Any, first: bool = index == 0) -> None:
                attention(m, a, o, first=first)

            stack.callback(part.register_forward_hook(seen).remove)
        stack.callback(model.get_output_embeddings().register_forward_pre_hook(head).remove)
        hook = model.model.vision_tower.register_forward_pre_hook(tower, with_kwargs=True)
        stack.callback(hook.remove)
        before = bytes_written()
        yield work
        after = bytes_written()
    if before is not None and after is not None:
        work.bytes_written = after - before


def bytes_written(table: Path = Path("/proc/self/io")) -> int | None:
    """Return how many bytes this process has sent to storage, or None if the system hides it.

    Pipes, to which a warning or a progress bar goes, do not count; nor do files in memory.
    """
    try:
        lines = table.read_text().splitlines()
    except OSError:
        return None
    found = dict(line.split(": ", 1) for line in lines)
    return int(found["write_bytes"]) if "write_bytes" in found else None
