"""Videos in the forms in which people have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.pictures import Picture, PictureLike, is_picture_file, picture_of

SUFFIXES = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv"}
)
"""Endings of the names of files that are taken for videos. A `.gif` is one where a video is asked
for, and else its first frame, as transformers' own loaders have it."""

_ALLOWED = (
    "give the path of a video file, the path of a folder of frames, or the frames themselves in"
    " order, each in any form of a picture"
)


@dataclass(frozen=True)
class Video:
    """A video that a question is about: a file, a folder of frames, or frames.

    >>> Video(["frame-1.png", "frame-2.png", "frame-3.png"], rate=2.0).count is None
    True

    Raises:
        DataError: if it holds no frame, or `rate` or `count` is out of range.
    """

    source: str | Path | Sequence[PictureLike]
    """A path, or frames in order, which may be one array [t, height, width, 3]. The frames of a
    folder are its picture files by name, numbers in it by size. Kept as a path, or as frames."""
    rate: float | None = None
    """Frames a second of the frames; None means not known. A file says it itself."""
    count: int | None = None
    """Frames to show of them, evenly spread; None leaves the choice to the model's processor."""

    def __post_init__(self) -> None:
        if self.rate is not None and not _is_number(self.rate):
            raise DataError(f"rate = {self.rate!r}: frames a second, above 0, or None")
        if self.count is not None and (
            isinstance(self.count, bool) or not isinstance(self.count, int) or self.count < 1
        ):
            raise DataError(f"count = {self.count!r}: frames to show, at least 1, or None")
        object.__setattr__(self, "source", _source_of(self.source))
        if self.rate is not None and is_video_file(self.source):
            raise DataError(
                f"rate = {self.rate}: a video file says it itself; give count, the frames to show"
            )

    @property
    def frames(self) -> tuple[Picture, ...] | None:
        """The frames, in order; None for a file.

        Raises:
            DataError: if there is nothing at the path, or a folder without pictures.
        """
        if isinstance(self.source, tuple):
            return self.source
        path = Path(str(self.source))
        if path.is_dir():
            frames = [each for each in path.iterdir() if is_picture_file(each)]
            if not frames:
                raise DataError(f"no pictures in {path}; a folder of frames holds picture files")
            return tuple(sorted(frames, key=_by_numbers))
        if not path.is_file():
            raise DataError(f"no video at {path}; check the images folder")
        return None


def is_video_file(path: object) -> bool:
    """Return whether a path's name ends as those of video files do."""
    return isinstance(path, Path) and path.suffix.lower() in SUFFIXES


def holds_video(path: Path) -> bool:
    """Return whether a path is that of a video file, or of a folder that may hold frames."""
    try:
        return is_video_file(path) or path.is_dir()
    except (OSError, ValueError):  # a text that is too long for a name
        return False


def _source_of(source: Any) -> Path | tuple[Picture, ...]:
    if isinstance(source, str | Path):
        if not str(source) or "\0" in str(source):
            raise DataError(f"{source!r} is no path of a video; {_ALLOWED}")
        return Path(source)
    if isinstance(source, bytes) or not hasattr(source, "__iter__"):
        raise DataError(f"a {type(source).__name__} is no video; {_ALLOWED}")
    frames = tuple(picture_of(frame) for frame in source)
    if not frames:
        raise DataError(f"a video without frames; {_ALLOWED}")
    return frames


def _is_number(rate: object) -> bool:
    return isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < float("inf")


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Return what orders the names of frames: 2 comes before 10."""
    parts: list[tuple[int, str]] = []
    text = ""
    for char in path.name + "\0":
        if text and char.isdecimal() != text[-1].isdecimal():
            parts.append((int(text), "") if text.isdecimal() else (-1, text))
            text = ""
        text += char
    return parts
