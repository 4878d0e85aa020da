"""The world that the testbed model knows: scenes of coloured shapes in a grid of three by three."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from easyedit_dualedit.errors import DataError

Split = Literal["train", "eval"]

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond", "star", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
REGIONS = (
    "top left",
    "top middle",
    "top right",
    "middle left",
    "center",
    "middle right",
    "bottom left",
    "bottom middle",
    "bottom right",
)
GRID = 3
LARGEST_SCENE = 4

_SIZE_WEIGHTS = (1, 3, 4, 4)
_REPEAT_PROBABILITY = 0.3
# One scene in five belongs to the evaluation split.
_EVAL_SHARE = 5


@dataclass(frozen=True, order=True)
class SceneObject:
    """One coloured shape; ``cell`` counts the grid row by row from 0 (top left) to 8."""

    cell: int
    shape: str
    colour: str

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def region(self) -> str:
        """The words for the cell, such as "top left"."""
        return REGIONS[self.cell]


@dataclass(frozen=True)
class Scene:
    """One to four objects in distinct cells, kept in reading order.

    Raises:
        DataError: no or too many objects, two in one cell, or a shape, colour or cell unknown here.
    """

    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.objects) <= LARGEST_SCENE:
            raise DataError(
                f"a scene was given {len(self.objects)} objects; it holds 1 to {LARGEST_SCENE}"
            )
        for item in self.objects:
            if item.shape not in SHAPES or item.colour not in COLOURS:
                raise DataError(
                    f"unknown object {item.name!r}; shapes are {SHAPES}, colours are {COLOURS}"
                )
            if not 0 <= item.cell < GRID * GRID:
                raise DataError(f"cell {item.cell} is outside the grid; cells are 0 to 8")
        if len({item.cell for item in self.objects}) != len(self.objects):
            raise DataError("two objects share a cell; give each object a cell of its own")
        object.__setattr__(self, "objects", tuple(sorted(self.objects)))

    @property
    def key(self) -> str:
        """Name of the scene up to the arrangement of its objects."""
        return ", ".join(sorted(item.name for item in self.objects))

    @property
    def split(self) -> Split:
        """The split that owns this scene in every arrangement, by a stable hash of its key."""
        digest = hashlib.sha256(self.key.encode()).digest()
        return "eval" if digest[0] % _EVAL_SHARE == 0 else "train"


def draw_scene(source: random.Random, accept: Callable[[Scene], bool] | None = None) -> Scene:
    """Return a random scene; with ``accept``, the first drawn one that it accepts.

    Shapes and colours repeat more often than by chance, so that counting them is no formality.
    """
    while True:
        scene = _draw(source)
        if accept is None or accept(scene):
            return scene


def _draw(source: random.Random) -> Scene:
    (size,) = source.choices(range(1, LARGEST_SCENE + 1), weights=_SIZE_WEIGHTS)
    shapes: list[str] = []
    colours: list[str] = []
    for _ in range(size):
        repeat_shape = shapes and source.random() < _REPEAT_PROBABILITY
        repeat_colour = colours and source.random() < _REPEAT_PROBABILITY
        shape = source.choice(shapes if repeat_shape else SHAPES)
        colour = source.choice(colours if repeat_colour else COLOURS)
        shapes.append(shape)
        colours.append(colour)
    cells = source.sample(range(GRID * GRID), size)
    return Scene(tuple(map(SceneObject, cells, shapes, colours)))


def rearrange(scene: Scene, source: random.Random, fixed: SceneObject | None = None) -> Scene:
    """Return the same objects in other cells and the same reading order.

    An object given as ``fixed`` keeps its cell; the others are then free, in any order.

    Raises:
        DataError: ``fixed`` is not in the scene.
    """
    cells = list(range(GRID * GRID))
    if fixed is None:
        chosen = sorted(source.sample(cells, len(scene.objects)))
        moved = zip(chosen, scene.objects, strict=True)
        return Scene(tuple(SceneObject(cell, old.shape, old.colour) for cell, old in moved))
    if fixed not in scene.objects:
        raise DataError(f"{fixed} is not in the scene {scene.key!r}; name one of its objects")
    cells.remove(fixed.cell)
    others = [item for item in scene.objects if item != fixed]
    chosen = source.sample(cells, len(others))
    free = (SceneObject(c, old.shape, old.colour) for c, old in zip(chosen, others, strict=True))
    return Scene((fixed, *free))
