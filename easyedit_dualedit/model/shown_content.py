"""What is seen of a picture or a video: a hash of it, and a still."""

import hashlib
from pathlib import Path

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Shown, content_digest
from easyedit_dualedit.model.pictures import Picture
from easyedit_dualedit.model.videos import Video


def shown_digest(shown: Shown) -> str:
    """Return a hash of what a model sees of a picture or a video.

    That of a video file is a hash of the file.

    Raises:
        DataError: if it cannot be read.
    """
    if not isinstance(shown, Video):
        return content_digest(shown)
    digest = hashlib.sha256(repr((shown.rate, shown.count)).encode())
    frames = shown.frames
    if frames is None:
        try:
            digest.update(Path(str(shown.source)).read_bytes())
        except OSError as error:
            raise DataError(f"{shown.source} cannot be read ({error})") from error
    for frame in frames or ():
        digest.update(content_digest(frame).encode())
    return digest.hexdigest()


def still_of(shown: Shown) -> Picture | None:
    """Return a picture, or the first frame of a video; None for a video file."""
    if not isinstance(shown, Video):
        return shown
    frames = shown.frames
    return None if frames is None else frames[0]
