"""Draws a scene as a small picture."""

import math
import random

from PIL import Image, ImageDraw

from easyedit_dualedit.testbed.world import GRID, Scene, SceneObject

SIDE = 48
"""Width and height of a picture, in pixels."""

_CELL = SIDE // GRID
_OVERSAMPLING = 4
_SMALLEST, _LARGEST = 11.0, 14.0
_COLOUR_JITTER = 14
_PIGMENTS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (238, 220, 45),
    "purple": (150, 50, 185),
    "orange": (240, 135, 25),
    "cyan": (70, 215, 225),
    "white": (240, 240, 240),
}


def render(scene: Scene, seed: int) -> Image.Image:
    """Return the scene as an RGB picture of 48 by 48 pixels.

    The seed decides the background, and each object's size, shade and place within its cell; it
    changes no answer to any question about the scene.
    """
    source = random.Random(f"render {seed}")
    level = source.randint(25, 85)
    background = tuple(level + source.randint(-12, 12) for _ in range(3))
    canvas = Image.new("RGB", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING), background)
    pencil = ImageDraw.Draw(canvas)
    for item in scene.objects:
        _draw_object(pencil, item, source, background)
    return canvas.reduce(_OVERSAMPLING)


def _draw_object(
    pencil: ImageDraw.ImageDraw,
    item: SceneObject,
    source: random.Random,
    background: tuple[int, ...],
) -> None:
    size = source.uniform(_SMALLEST, _LARGEST)
    slack = (_CELL - size) / 2
    row, column = divmod(item.cell, GRID)
    x = (column + 0.5) * _CELL + source.uniform(-slack, slack)
    y = (row + 0.5) * _CELL + source.uniform(-slack, slack)
    fill = tuple(
        min(255, max(0, value + source.randint(-_COLOUR_JITTER, _COLOUR_JITTER)))
        for value in _PIGMENTS[item.colour]
    )
    radius = size / 2 * _OVERSAMPLING
    centre = (x * _OVERSAMPLING, y * _OVERSAMPLING)
    if item.shape == "circle":
        pencil.circle(centre, radius, fill=fill)
    elif item.shape == "ring":
        pencil.circle(centre, radius, fill=fill)
        pencil.circle(centre, radius * 0.55, fill=background)
    elif item.shape == "heart":
        _draw_heart(pencil, centre, radius, fill)
    else:
        outline = _OUTLINES[item.shape]
        corners = [(centre[0] + radius * dx, centre[1] + radius * dy) for dx, dy in outline]
        pencil.polygon(corners, fill=fill)


def _draw_heart(
    pencil: ImageDraw.ImageDraw,
    centre: tuple[float, float],
    radius: float,
    fill: tuple[int, ...],
) -> None:
    x, y = centre
    lobe = radius * 0.52
    for side in (-1, 1):
        pencil.circle((x + side * radius * 0.46, y - radius * 0.4), lobe, fill=fill)
    left, right = (x - radius * 0.92, y - radius * 0.15), (x + radius * 0.92, y - radius * 0.15)
    pencil.polygon([left, (x, y - radius * 0.45), right, (x, y + radius)], fill=fill)


def _star() -> list[tuple[float, float]]:
    points = []
    for index in range(10):
        reach = 1.0 if index % 2 == 0 else 0.42
        angle = math.pi * index / 5
        points.append((reach * math.sin(angle), -reach * math.cos(angle)))
    return points


def _cross(arm: float = 0.32) -> list[tuple[float, float]]:
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turned = quarter
    points = list(quarter)
    for _ in range(3):
        turned = [(-y, x) for x, y in turned]
        points.extend(turned)
    return points


_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "diamond": [(0.0, -1.0), (0.75, 0.0), (0.0, 1.0), (-0.75, 0.0)],
    "cross": _cross(),
    "star": _star(),
}
