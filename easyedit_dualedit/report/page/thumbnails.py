"""Small copies of pictures that a page can carry in itself."""

import base64
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image, ImageOps

logger = logging.getLogger(__name__)

SIDE = 112
"""Longest side, in pixels."""
_QUALITY = 80


def thumbnails(
    names: Iterable[str], pictures: Mapping[str, Path]
) -> tuple[dict[str, str], list[str]]:
    """Return the small pictures as JPEG data URIs by name, and the names that cannot be read.

    Args:
        names: which pictures are wanted; those without a file are in neither.
        pictures: files by name.
    """
    made: dict[str, str] = {}
    unreadable: list[str] = []
    for name in dict.fromkeys(names):
        if name not in pictures:
            continue
        try:
            made[name] = _uri(pictures[name])
        # A damaged file makes Pillow raise almost anything.
        except Exception as error:
            logger.warning("%s is left out of the page: %s", pictures[name], error)
            unreadable.append(name)
    return made, unreadable


def _uri(path: Path) -> str:
    with Image.open(path) as picture:
        # Has a JPEG decoded at about the size that is needed.
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        upright = ImageOps.exif_transpose(picture)
        upright.thumbnail((SIDE, SIDE))
        if upright.mode in ("RGBA", "LA", "P"):
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        stream = io.BytesIO()
        upright.convert("RGB").save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
