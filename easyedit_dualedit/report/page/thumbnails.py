"""Small copies of pictures that a page can carry in itself."""

import base64
import io
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from easyedit_dualedit.model.video_frames import strip_of
from easyedit_dualedit.model.videos import Video, is_video_file

logger = logging.getLogger(__name__)

SIDE = 112
"""Longest side, in pixels."""
_QUALITY = 80
FRAMES = 4
"""Frames of a video, or pictures of several, that are shown at most."""


def names_of(query: Mapping[str, Any]) -> list[str]:
    """Return which pictures of a recorded question are shown, in order, a few of many."""
    names = [name for name in query.get("images") or [query.get("image")] if name]
    count = min(FRAMES, len(names))
    return [names[place * len(names) // count] for place in range(count)]


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
    stream = io.BytesIO()
    small = _strip(path) if is_video_file(path) else _small(path)
    small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _small(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        # Has a JPEG decoded at about the size that is needed.
        picture.draft("RGB", (2 * SIDE, 2 * SIDE))
        upright = ImageOps.exif_transpose(picture)
        upright.thumbnail((SIDE, SIDE))
        if upright.mode in ("RGBA", "LA", "P"):
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return upright.convert("RGB")


def _strip(path: Path) -> Image.Image:
    """Return frames of a video file side by side."""
    frames = strip_of(Video(path), FRAMES)
    for frame in frames:
        frame.thumbnail((SIDE, SIDE))
    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height))
    for place, frame in enumerate(frames):
        strip.paste(frame, (width * place, 0))
    return strip
