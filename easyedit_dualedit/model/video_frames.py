"""Which frames of a video a model is shown, and how they are read."""

import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query, open_image, shown_key
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.model.videos import Video

FRAMES_OF_A_FILE = 8
"""Frames that are shown of a file where neither the user nor the processor says, as EasyEdit has
it."""

_ASSUMED_RATE = 24.0
"""Frames a second where nobody says, as the processors of transformers assume."""

CLIP_BYTES = 256 * 2**20
"""Bytes of decoded frames that are kept: 64 frames of 1280x720 are 177 million."""

_DECODERS = {"torchcodec": "torchcodec", "pyav": "av", "opencv": "cv2"}
"""Name that transformers has for a library that decodes videos -> its module."""

_NOT_FOR_SAMPLING = frozenset(
    {"input_data_format", "do_convert_rgb", "do_sample_frames", "device", "video_metadata"}
)


@dataclass(frozen=True)
class Clip:
    """The frames that are shown of a video."""

    pixels: np.ndarray[Any, Any]
    """uint8 [t, height, width, 3]."""
    metadata: Any
    """What transformers' processors want to know of them."""

    @property
    def arguments(self) -> dict[str, Any]:
        """What a processor of transformers takes to read these frames, and no others."""
        return {
            "videos": [[self.pixels]],
            "video_metadata": [self.metadata],
            "do_sample_frames": False,
        }


def read_clip(video: Video, video_processor: Any) -> Clip:
    """Return the frames of a video that a model is shown.

    The video says how many, else the processor does if it samples frames; else all frames are
    shown, of a file `FRAMES_OF_A_FILE`.

    Args:
        video: what to read.
        video_processor: of the model.

    Raises:
        DataError: if it cannot be read, its frames are of several sizes, or no library is there
            that decodes its file.
    """
    frames = video.frames
    if frames is None:
        return _decoded(Path(str(video.source)), video.count, video_processor)
    rate = _ASSUMED_RATE if video.rate is None else float(video.rate)
    metadata = _metadata(total_num_frames=len(frames), fps=rate, duration=len(frames) / rate)
    places = _places(metadata, video.count, None, video_processor)
    images = [open_image(frames[place]) for place in places]
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise DataError(
            f"the frames of a video are of {len(sizes)} sizes, such as"
            f" {' and '.join(f'{w}x{h}' for w, h in sorted(sizes)[:2])}; give frames of one size"
        )
    metadata.width, metadata.height = images[0].size
    metadata.frames_indices = places
    return Clip(np.stack([np.asarray(image) for image in images]), metadata)


class Clips:
    """Clips of the videos that were read last, within a budget of memory: decoding takes long."""

    def __init__(self, video_processor: Any, budget: int = CLIP_BYTES):
        """Read for one model's processor; keep at most `budget` bytes of frames."""
        self._video_processor = video_processor
        self._budget = budget
        self._held: OrderedDict[Hashable, Clip] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["Clips"], tuple[Any, int]]:
        """Copy and pickle as one that has read nothing yet."""
        return Clips, (self._video_processor, self._budget)

    def of(self, video: Video) -> Clip:
        """Return the frames of a video that the model is shown; see `read_clip`."""
        key = shown_key(video)
        with self._lock:
            clip = self._held.get(key)
        if clip is None:
            clip = read_clip(video, self._video_processor)
        with self._lock:
            self._held[key] = clip
            self._held.move_to_end(key)
            size = sum(each.pixels.nbytes for each in self._held.values())
            while size > self._budget:
                size -= self._held.popitem(last=False)[1].pixels.nbytes
        return clip


def by_length(queries: Sequence[Query], clip_of: Callable[[Query], Clip]) -> list[list[int]]:
    """Return the places of queries by batches that a model bears: not all mix videos in length.

    Args:
        queries: in any order.
        clip_of: returns the frames that are shown of a query's video.

    Raises:
        DataError: if a video cannot be read, or the model takes none.
    """
    frames = [0 if query.video is None else len(clip_of(query).pixels) for query in queries]
    if len({count for count in frames if count}) < 2:
        return [list(range(len(queries)))]
    return [
        [place for place, each in enumerate(frames) if each == count]
        for count in dict.fromkeys(frames)
    ]


def batches_by_length(
    queries: Sequence[Query], clip_of: Callable[[Query], Clip], most: int
) -> Iterator[list[int]]:
    """Yield the places of queries by such batches of a few each.

    Args:
        queries: in any order.
        clip_of: as for `by_length`.
        most: of a batch.
    """
    for start in range(0, len(queries), most):
        for places in by_length(queries[start : start + most], clip_of):
            yield [start + place for place in places]


def strip_of(video: Video, most: int = 4) -> list[Image.Image]:
    """Return a few frames of a video, evenly spread, in order.

    Raises:
        DataError: if it cannot be read.
    """
    frames = video.frames
    if frames is not None:
        return [open_image(frames[place]) for place in _spread(len(frames), most)]
    clip = _decoded(Path(str(video.source)), most, None)
    return [Image.fromarray(pixels) for pixels in clip.pixels]


def _decoded(path: Path, count: int | None, video_processor: Any) -> Clip:
    define_missing_operators()
    backend = next((name for name, part in _DECODERS.items() if _is_installed(part)), None)
    if backend is None:
        raise DataError(
            f"{path} cannot be decoded: none of {', '.join(_DECODERS.values())} is installed;"
            " install one (pip install av), or give the video as a folder or list of frames"
        )

    def sample(metadata: Any, **_: Any) -> list[int]:
        if not metadata.total_num_frames:  # some files do not say it
            metadata.total_num_frames = _counted(path)
        places = _places(metadata, count, FRAMES_OF_A_FILE, video_processor)
        # Its decoders keep frames by their places.
        return sorted(set(places))

    try:
        load = import_module("transformers.video_utils").load_video
        pixels, metadata = load(str(path), backend=backend, sample_indices_fn=sample)
    except Exception as error:  # a damaged file makes the decoders raise almost anything
        line = " ".join(str(error).split())[:160]
        raise DataError(
            f"{path} cannot be read as a video ({type(error).__name__}: {line}); replace it"
        ) from error
    return Clip(np.asarray(pixels), metadata)


def _places(
    metadata: Any, count: int | None, default: int | None, video_processor: Any
) -> list[int]:
    """Return which frames are shown, in order.

    Args:
        metadata: transformers' description of the whole video.
        count: how many; None leaves it to the processor.
        default: how many if it samples none; None means all.
        video_processor: of the model; None means that there is none.
    """
    total = int(metadata.total_num_frames)
    if count is None and getattr(video_processor, "do_sample_frames", False):
        names = set(video_processor.valid_kwargs.__annotations__) - _NOT_FOR_SAMPLING
        own = {name: getattr(video_processor, name, None) for name in names}
        try:
            return [int(place) for place in video_processor.sample_frames(metadata=metadata, **own)]
        except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
            line = " ".join(str(error).split())
            raise DataError(
                f"{type(video_processor).__name__} cannot choose among {total} frames ({line});"
                " give count, the frames to show"
            ) from error
    return _spread(total, (default or total) if count is None else count)


def _spread(total: int, count: int) -> list[int]:
    count = min(total, count)
    return [place * total // count for place in range(count)]


def _counted(path: Path) -> int:
    av = import_module("av")
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _metadata(**values: Any) -> Any:
    define_missing_operators()
    return import_module("transformers.video_utils").VideoMetadata(video_backend="frames", **values)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
