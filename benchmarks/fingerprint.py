"""What the fingerprint of a model costs at the size of LLaVA-1.5-7B: adapters and edits hold one.

    python -m benchmarks.fingerprint

counts on a model of the same depth, and takes the time on two layers at full width in bfloat16, of
which each tensor costs the same as those of the other layers.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.subject import SHAPES, Shapes, editor_of
from easyedit_dualedit.method.fingerprint import ModelFingerprint
from easyedit_dualedit.model.backbone import Backbone

_REPEATS = 9


@dataclass(frozen=True)
class Cost:
    """What a fingerprint takes."""

    tensors: int
    """Parameters of the model."""
    operations: int
    bytes_made: int
    """Of what the operations give, views aside: copies of weights, and places in them."""


def cost_of(backbone: Backbone) -> Cost:
    """Return what the fingerprint of a model takes."""
    with _Made() as made:
        ModelFingerprint.of(backbone)
    return Cost(len(list(backbone.model.parameters())), made.operations, made.bytes)


class _Made(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        if isinstance(result, Tensor):
            given = {each.data_ptr() for each in args if isinstance(each, Tensor)}
            self.bytes += 0 if result.data_ptr() in given else result.nbytes
        return result


def milliseconds_of(backbone: Backbone) -> tuple[float, float]:
    """Return how long the first fingerprint of a model takes, and later ones; processor time."""
    times = []
    for _ in range(_REPEATS):
        began = time.process_time()
        ModelFingerprint.of(backbone)
        times.append(1000 * (time.process_time() - began))
    return times[0], statistics.median(times[1:])


def two_layers(shapes: Shapes) -> Shapes:
    """Return the same widths with two decoder layers and two of the vision tower."""
    return replace(shapes, layers=2, tower_layers=2, text_layer=0, vision_layer=1)


def main() -> None:
    """Run the command."""
    shapes = SHAPES["llava-1.5-7b"]
    cost = cost_of(editor_of(shapes.narrow()).backbone)
    wide = editor_of(two_layers(shapes)).backbone
    share = len(list(wide.model.parameters())) / cost.tensors
    first, later = (one / share for one in milliseconds_of(wide))
    sys.stdout.write(
        f"{cost.tensors} tensors, {cost.operations} operations, {cost.bytes_made / 1000:.0f} kB;"
        f" {first:.0f} ms the first time, {later:.0f} ms later, scaled from"
        f" {share * cost.tensors:.0f} tensors at full width\n"
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
