"""Draws pictures of things: one, or two side by side, on a plain background."""

import hashlib
import io
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from easyedit_dualedit.errors import DataError

SIDE = 96
"""Width and height of a picture, in pixels."""

PATCH = 16
"""Width and height of a patch, in pixels; every thing begins at the border of one."""

GRID = SIDE // PATCH
SINGLE_SIZES = (4, 5)
"""Width and height of a thing that is alone, in patches."""

PAIR_SIZE = GRID // 2
"""Width and height of each of two things side by side, in patches."""

VENDORS = ("noto", "twemoji")
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (247, 220, 85),
    "green": (56, 160, 80),
    "blue": (52, 98, 214),
    "purple": (130, 66, 170),
    "pink": (246, 160, 194),
    "brown": (122, 80, 48),
    "cyan": (96, 208, 220),
}

_UNSEEN_SHARE = 10


@dataclass(frozen=True)
class Placed:
    """A thing's drawing in a picture.

    Attributes:
        name: of the thing.
        vendor: whose drawing it is, one of ``VENDORS``.
        size: width and height, in patches.
        row: patches above it.
        column: patches to the left of it.
    """

    name: str
    vendor: str
    size: int
    row: int
    column: int


@dataclass(frozen=True)
class Picture:
    """What a picture shows: one or two things, from left to right, and the background's color.

    Raises:
        DataError: no thing or more than two, an unknown background, or a thing beyond the edge.
    """

    things: tuple[Placed, ...]
    background: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= 2:
            raise DataError(f"a picture was given {len(self.things)} things; it holds one or two")
        if self.background not in BACKGROUNDS:
            raise DataError(
                f"unknown background {self.background!r}; give one of {', '.join(BACKGROUNDS)}"
            )
        for placed in self.things:
            if placed.vendor not in VENDORS:
                raise DataError(
                    f"unknown vendor {placed.vendor!r}; give one of {', '.join(VENDORS)}"
                )
            ends = (placed.row + placed.size, placed.column + placed.size)
            if min(placed.row, placed.column) < 0 or max(ends) > GRID:
                raise DataError(f"{placed} does not lie within {GRID} by {GRID} patches")

    @property
    def key(self) -> str:
        """The whole description in one line."""
        things = (f"{p.name}/{p.vendor}/{p.size}/{p.row}/{p.column}" for p in self.things)
        return " ".join((*things, self.background))

    @property
    def unseen(self) -> bool:
        """True for one picture in ten, by a stable hash: the model is never trained on these."""
        return hashlib.sha256(self.key.encode()).digest()[0] % _UNSEEN_SHARE == 0


def draw_single(
    name: str, source: random.Random, *, vendor: str | None = None, unseen: bool | None = None
) -> Picture:
    """Return a picture of one thing in a random drawing, size, place and background.

    Args:
        name: of the thing.
        source: of chance.
        vendor: whose drawing to take; either with None.
        unseen: True for a picture that the model was never trained on, False for one of the
            others, None for any.
    """
    while True:
        size = source.choice(SINGLE_SIZES)
        placed = Placed(
            name,
            vendor or source.choice(VENDORS),
            size,
            source.randint(0, GRID - size),
            source.randint(0, GRID - size),
        )
        picture = Picture((placed,), source.choice(list(BACKGROUNDS)))
        if unseen is None or picture.unseen == unseen:
            return picture


def draw_pair(
    left: str,
    right: str,
    source: random.Random,
    *,
    vendors: tuple[str | None, str | None] = (None, None),
    unseen: bool | None = None,
) -> Picture:
    """Return a picture of two things side by side; arguments as those of :func:`draw_single`."""
    while True:
        things = tuple(
            Placed(
                name,
                vendor or source.choice(VENDORS),
                PAIR_SIZE,
                source.randint(0, GRID - PAIR_SIZE),
                column,
            )
            for name, vendor, column in zip((left, right), vendors, (0, PAIR_SIZE), strict=True)
        )
        picture = Picture(things, source.choice(list(BACKGROUNDS)))
        if unseen is None or picture.unseen == unseen:
            return picture


class Drawings:
    """Every drawing of every thing, each scaled once to the sizes that pictures need."""

    def __init__(self, files: Mapping[tuple[str, str], bytes]) -> None:
        """Keep the drawings: PNG content by vendor and name of the thing."""
        self._files = dict(files)
        self._scaled: dict[tuple[str, str, int], np.ndarray] = {}

    @property
    def names(self) -> frozenset[str]:
        """Names of all things that are drawn."""
        return frozenset(name for _, name in self._files)

    def pixels(self, picture: Picture) -> np.ndarray:
        """Return a picture as uint8 [96, 96, 3].

        Raises:
            DataError: a thing of it has no drawing here.
        """
        canvas = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
        canvas[:] = BACKGROUNDS[picture.background]
        for placed in picture.things:
            drawing = self._drawing(placed)
            top, left = placed.row * PATCH, placed.column * PATCH
            side = placed.size * PATCH
            part = canvas[top : top + side, left : left + side]
            through = part * drawing[..., 3:] // 255
            part[:] = np.minimum(drawing[..., :3] + through, 255)
        return canvas

    def draw(self, picture: Picture) -> Image.Image:
        """Return a picture as RGB image of 96 by 96 pixels."""
        return Image.fromarray(self.pixels(picture))

    def _drawing(self, placed: Placed) -> np.ndarray:
        key = (placed.vendor, placed.name, placed.size)
        if key not in self._scaled:
            try:
                content = self._files[placed.vendor, placed.name]
            except KeyError:
                raise DataError(
                    f"there is no drawing of {placed.name!r} by {placed.vendor}; take a name that "
                    "read_things returned"
                ) from None
            side = placed.size * PATCH
            image = Image.open(io.BytesIO(content)).convert("RGBA")
            # Scaled with premultiplied colors: the hidden ones of clear pixels must not bleed.
            scaled = image.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
            values = np.array(scaled).astype(np.uint16)
            # What is kept last is how much of the background shows through.
            values[..., 3] = 255 - values[..., 3]
            self._scaled[key] = values
        return self._scaled[key]


def stack_pixels(drawings: Drawings, pictures: Iterable[Picture]) -> np.ndarray:
    """Return pictures as uint8 [n, 3, 96, 96]."""
    return np.stack([drawings.pixels(picture) for picture in pictures]).transpose(0, 3, 1, 2)
