"""The arithmetic of training steps of a deep model, from shallow models of its width.

A step runs some layers below the first edit, some up to the deeper edit, and some above. One more
layer of each sort adds the same each time, so four shallow models tell what any depth takes.
"""

from dataclasses import replace

import torch

from benchmarks.clock import gflop_of
from benchmarks.subject import Shapes, editor_of
from benchmarks.tasks import tasks


def step_gflop(shapes: Shapes, batch: int, device: torch.device) -> dict[str, float]:
    """Return the GFLOP of each kind of training step, the vision layer above the text layer.

    Args:
        shapes: of the deep model.
        batch: records of a step.
        device: where the shallow models run.
    """
    depth = (
        shapes.text_layer + 1,
        shapes.vision_layer - shapes.text_layer,
        shapes.layers - 1 - shapes.vision_layer,
    )
    least = _gflop(shapes, (1, 1, 1), batch, device)
    found = dict(least)
    for sort in range(len(depth)):
        deeper = _gflop(shapes, _one_more(sort), batch, device)
        for name in found:
            found[name] += (depth[sort] - 1) * (deeper[name] - least[name])
    return {name: round(value, 2) for name, value in found.items()}


def _one_more(sort: int) -> tuple[int, int, int]:
    frozen, between, above = (2 if place == sort else 1 for place in range(3))
    return frozen, between, above


def _gflop(
    shapes: Shapes, depth: tuple[int, int, int], batch: int, device: torch.device
) -> dict[str, float]:
    frozen, between, above = depth
    shallow = replace(
        shapes,
        layers=frozen + between + above,
        text_layer=frozen - 1,
        vision_layer=frozen - 1 + between,
    )
    found = {}
    for name, task in tasks(editor_of(shallow, device), shallow, batch).items():
        if name != "edit":
            task()  # the first step compares itself with whole forwards
            found[name] = gflop_of(task)
    return found
