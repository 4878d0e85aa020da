"""Turns EasyEdit's edit requests into this package's."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query, Shown
from easyedit_dualedit.model.pictures import Picture
from easyedit_dualedit.model.videos import Video

FILE_TYPES = ("image", "single-image", "multi-image", "video", "text")


def requested_queries(
    requests: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    to_picture: Callable[[Tensor], Image.Image] | None = None,
) -> list[Query]:
    """Return the edits that EasyEdit asks for.

    Args:
        requests: one request or a list of them, each with `prompt`, `target` and `image`.
        to_picture: makes a picture of an image tensor; None where images are never tensors.

    Raises:
        DataError: if there is no request, or one lacks something or holds what cannot be edited.
    """
    items = [requests] if isinstance(requests, Mapping) else list(requests)
    if not items:
        raise DataError("no requests to edit; give at least one")
    return [_query_of(item, number, to_picture) for number, item in enumerate(items)]


def _query_of(
    request: Mapping[str, Any], number: int, to_picture: Callable[[Tensor], Image.Image] | None
) -> Query:
    require_texts(number, request.get("prompt"), request.get("target"))
    file_type = request.get("file_type") or "image"
    if file_type not in FILE_TYPES:
        raise DataError(
            f"request {number} has file_type {file_type!r}; DualEdit edits questions about"
            f" pictures, a video or none: {', '.join(FILE_TYPES)}"
        )
    shown = shown_from(request.get("image"), file_type, to_picture)
    return Query(request["prompt"], shown, request["target"])


def require_texts(number: int, prompt: Any, target: Any) -> None:
    """Check that an edit asks something and says the new answer.

    Raises:
        DataError: naming the request by its number.
    """
    texts = {"prompt": prompt, "target": target}
    missing = [
        name
        for name, text in texts.items()
        if text is None or (isinstance(text, str) and not text.strip())
    ]
    if missing:
        raise DataError(
            f"request {number} has no {' and no '.join(missing)}; an edit needs a prompt and the"
            " new answer as its target"
        )
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(
                f"request {number} has a {name} of type {type(text).__name__}; give a text"
            )


def shown_from(
    image: Any,
    file_type: str | None = None,
    to_picture: Callable[[Tensor], Image.Image] | None = None,
) -> Shown | tuple[Picture, ...] | None:
    """Return what a question shows of what EasyEdit hands over.

    Args:
        image: a picture, pictures or a video, in any form in which EasyEdit's readers give them.
        file_type: EasyEdit's word for what it is; None for a picture or pictures.
        to_picture: makes a picture of an image tensor; None where images are never tensors.

    Raises:
        DataError: if it is something else.
    """
    if file_type == "text" or image is None:
        return None
    if isinstance(image, Video):
        return image
    return _video_from(image) if file_type == "video" else picture_from(image, to_picture)


def _video_from(video: Any) -> Video:
    """Return the video that EasyEdit hands over: frames, an array, or an array in a list."""
    if isinstance(video, list | tuple) and len(video) == 1 and getattr(video[0], "ndim", 0) == 4:
        video = video[0]  # as for its Qwen models
    if isinstance(video, Tensor) and video.is_floating_point() and bool(video.max() > 1):
        # Its reader for Qwen gives floats from 0 to 255; resizing leaves some beyond.
        video = video.round().clamp(0, 255).to(torch.uint8)
    return Video(video)


def picture_from(
    image: Any, to_picture: Callable[[Tensor], Image.Image] | None = None
) -> Picture | tuple[Picture, ...] | None:
    """Return the picture, or the pictures, that EasyEdit hands over, in whatever form.

    Raises:
        DataError: if it is something else.
    """
    # EasyEdit hands the picture of its Qwen models over in a list, and several pictures, too.
    if isinstance(image, list | tuple) and image:
        pictures = tuple(_one_picture(item, to_picture) for item in image)
        return pictures[0] if len(pictures) == 1 else pictures
    return None if image is None else _one_picture(image, to_picture)


def _one_picture(image: Any, to_picture: Callable[[Tensor], Image.Image] | None) -> Picture:
    if isinstance(image, Image.Image | Path):
        return image
    if isinstance(image, str):
        return Path(image)
    if isinstance(image, Tensor) and to_picture is not None:
        return to_picture(image)
    raise DataError(
        f"an image of type {type(image).__name__} cannot be edited; give a picture (a PIL image"
        " or a path), or a list of pictures"
    )
