"""Small videos that tests share, and the tiny models that take them."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny_editors import picture
from tiny_families import FAMILIES

from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.videos import Video

WATCHING = [
    family
    for family in (
        "internvl",
        "llava-onevision",
        "qwen2-vl",
        "qwen2.5-vl",
        "qwen3-vl",
        "qwen3.5",
        "smolvlm",
    )
    if family in FAMILIES
]
"""Families whose processors take videos."""


def frames(*colours: str) -> list[Image.Image]:
    """Return a frame for each colour of its disc."""
    return [picture(colour, (40, 40)) for colour in colours]


def video_of(*colours: str, rate: float | None = 2.0) -> Video:
    """Return a video of discs of some colours, one a frame."""
    return Video(frames(*colours), rate=rate)


def mixed_queries() -> list[Query]:
    """Return an edit of a video, two pictures, one picture, and text alone, each with an answer."""
    return [
        Query("What happens to the circle?", video_of("red", "green", "blue", "blue"), "blue"),
        Query("How many circles are there?", frames("red", "blue"), "two three"),
        Query("What colour is the circle?", picture("red"), "green yellow"),
        Query("Where is the star?", None, "top left"),
    ]


def write_clip(path: Path, count: int = 12, rate: int = 4) -> Path:
    """Return a video file of grey frames, of which each is lighter than the one before.

    Raises:
        ImportError: without PyAV.
    """
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for place in range(count):
            shade = np.full((48, 64, 3), 20 * place, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path
