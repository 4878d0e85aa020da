"""Pictures of things: what a description may hold, and what is drawn where."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.drawing import (
    BACKGROUNDS,
    GRID,
    PATCH,
    SIDE,
    VENDORS,
    Drawings,
    Picture,
    Placed,
    draw_pair,
    draw_single,
    stack_pixels,
)

_INK = {("noto", "tiger"): (200, 100, 0), ("twemoji", "tiger"): (0, 100, 200)}


def _png(color: tuple[int, int, int]) -> bytes:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((*color, 255), (16, 16, 48, 48))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


DRAWINGS = Drawings({key: _png(color) for key, color in _INK.items()})


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_drawing_stands_where_it_was_placed_and_the_background_shows_through(vendor: str) -> None:
    pixels = DRAWINGS.pixels(Picture((Placed("tiger", vendor, 4, 1, 2),), "cyan"))
    assert pixels.shape == (SIDE, SIDE, 3)
    top, left = 1 * PATCH, 2 * PATCH
    assert tuple(pixels[top + 32, left + 32]) == _INK[vendor, "tiger"]
    ground = (pixels == np.array(BACKGROUNDS["cyan"])).all(-1)
    assert ground[: top + 14].all() and ground[:, : left + 14].all()
    assert ground[top + 2, left + 2]
    assert 900 < (~ground).sum() < 1300


def test_one_picture_in_ten_is_unseen_and_can_be_asked_for() -> None:
    source = random.Random(0)
    drawn = [draw_single("tiger", source) for _ in range(2000)]
    assert 0.04 < np.mean([picture.unseen for picture in {p.key: p for p in drawn}.values()]) < 0.2
    assert all(draw_single("tiger", source, unseen=True).unseen for _ in range(50))
    assert not any(draw_pair("tiger", "cat", source, unseen=False).unseen for _ in range(50))


def test_pictures_vary_in_vendor_size_place_and_background() -> None:
    source = random.Random(0)
    drawn = {draw_single("tiger", source).key for _ in range(20_000)}
    # Two vendors, 3 x 3 places at one size and 2 x 2 at the other, 12 backgrounds.
    assert len(drawn) == 2 * (9 + 4) * 12
    pairs = [draw_pair("tiger", "cat", source) for _ in range(300)]
    assert {tuple(p.column for p in pair.things) for pair in pairs} == {(0, GRID // 2)}
    assert {p.row for pair in pairs for p in pair.things} == {0, 1, 2, 3}


def test_the_seed_decides() -> None:
    assert draw_single("tiger", random.Random(3)) == draw_single("tiger", random.Random(3))


def test_a_vendor_can_be_asked_for() -> None:
    picture = draw_pair("cat", "dog", random.Random(0), vendors=("noto", "twemoji"))
    assert [placed.vendor for placed in picture.things] == ["noto", "twemoji"]


@pytest.mark.parametrize(
    ("things", "background", "message"),
    [
        ((), "red", "one or two"),
        ((Placed("tiger", "noto", 4, 0, 0),), "mauve", "unknown background 'mauve'"),
        ((Placed("tiger", "apple", 4, 0, 0),), "red", "unknown vendor 'apple'"),
        ((Placed("tiger", "noto", 4, 0, 3),), "red", "does not lie within"),
    ],
)
def test_refused(things: tuple[Placed, ...], background: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Picture(things, background)


def test_a_thing_without_drawing_is_refused() -> None:
    with pytest.raises(DataError, match="no drawing of 'cat' by noto"):
        DRAWINGS.pixels(Picture((Placed("cat", "noto", 4, 0, 0),), "red"))


def test_stacked_as_a_tower_reads_them() -> None:
    pictures = [draw_single("tiger", random.Random(n)) for n in range(3)]
    stacked = stack_pixels(DRAWINGS, pictures)
    assert stacked.shape == (3, 3, SIDE, SIDE)
    assert (stacked[1].transpose(1, 2, 0) == np.array(DRAWINGS.draw(pictures[1]))).all()
