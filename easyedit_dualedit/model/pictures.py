"""Pictures in the forms in which people have them: files, bytes, arrays, addresses."""

import base64
import binascii
import io
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.torchvision_ops import define_missing_operators

Picture = Image.Image | Path
"""A picture, or the file that holds one."""

PictureLike = Picture | str | bytes | np.ndarray[Any, Any] | Tensor | Mapping[str, Any] | IO[bytes]
"""What `picture_of` takes for a picture."""

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
"""Endings of the names of files that are taken for pictures in any case."""

_WHITE = 255

_ALLOWED = (
    "give a file's path, a PIL picture, encoded bytes, a data URI, an http(s) URL, an open binary"
    " file, an array or tensor of [height, width, 3] or [3, height, width], or what the datasets"
    " library calls an image"
)


def picture_of(value: PictureLike) -> Picture:
    """Return a picture in any form as a PIL picture, or as the path of the file that holds it.

    A path's file is read when the picture is needed; everything else is read now, so that a later
    change of an array, or the end of a file that was open, changes nothing. A PIL picture itself is
    kept, not a copy, and has to stay as it is: draw on a copy of it.

    Args:
        value: a path, also as text or as a `file://` URL; a PIL picture; encoded bytes; a data
            URI; a URL, fetched as transformers does; an open binary file; an array or tensor of
            uint8, or of floats from 0 to 1; a dictionary with `bytes` or `path` of the datasets
            library.

    Raises:
        DataError: if it is none of these, or cannot be read.
    """
    if isinstance(value, Path):
        return value
    if isinstance(value, Image.Image):
        return _read(value)
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _decoded(bytes(value), f"{len(value)} bytes")
    if isinstance(value, Tensor):
        return _of_array(
            value.detach().cpu().float().numpy()
            if value.is_floating_point()
            else value.detach().cpu().numpy()
        )
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, Mapping):
        content: Any = value.get("bytes")
        held = value.get("path") if content is None else content
        if held is not None:
            return picture_of(held)
    elif hasattr(value, "read"):
        try:
            content = value.read()
        except (OSError, ValueError) as error:
            raise DataError(
                f"the file of a picture cannot be read ({error}); {_ALLOWED}"
            ) from error
        if isinstance(content, bytes):
            return _decoded(content, _short(getattr(value, "name", "an open file")))
    raise DataError(f"{_short(value)} is no picture; {_ALLOWED}")


def in_eight_bits(picture: Image.Image) -> Image.Image:
    """Return a picture of 16 bits of grey, or of fractions up to 1, scaled to 8 bits.

    Any other is returned as it is. Pillow itself would make all but the darkest values white, and
    fractions black.

    Raises:
        ValueError: if its values are of 32 bits, and go beyond those of 8.
    """
    if picture.mode in ("I", "F"):
        low, high = (float(value) for value in picture.getextrema())  # type: ignore[arg-type]
        if low < 0 or high > _WHITE:
            raise ValueError(
                f"its 32-bit values go from {low:g} to {high:g}, and nothing says which is white"
            )
        if picture.mode == "F" and 0 < high <= 1:
            scaled = np.asarray(picture) * _WHITE
            return Image.fromarray(scaled.round().astype(np.uint8))
    if not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture).astype(np.uint32)
    return Image.fromarray(((values * _WHITE + 32767) // 65535).astype(np.uint8))


def is_picture_file(path: Path) -> bool:
    """Return whether a path's name ends as those of picture files do."""
    return path.suffix.lower() in SUFFIXES


def unreadable(picture: Picture, error: Exception) -> DataError:
    """Return what to say of a picture that could not be opened."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"no picture at {picture}; check the images folder")
    name = str(picture) if isinstance(picture, Path) else f"the picture {_short(picture)}"
    return DataError(f"{name} cannot be read as a picture ({_line(error)}); replace it")


def _read(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise unreadable(picture, error) from error
    if 0 in picture.size:
        raise DataError(f"a picture of {picture.width} x {picture.height} pixels shows nothing")
    return picture


def _of_text(text: str) -> Picture:
    if text.startswith("data:"):
        head, _, body = text.partition(",")
        try:
            content = base64.b64decode(body, validate=True) if head.endswith(";base64") else b""
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{_short(text)} is no picture in base64 ({error})") from error
        return _decoded(content, _short(text))
    if text.startswith(("http://", "https://")):
        try:
            define_missing_operators()
            fetched: Image.Image = import_module("transformers.image_utils").load_image(text)
        except Exception as error:  # whatever the network and its library raise
            raise DataError(f"{_short(text)} cannot be fetched ({_line(error)})") from error
        return fetched
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    if not text or "\0" in text:
        raise DataError(f"{_short(text)} is no path of a picture; {_ALLOWED}")
    return Path(text)


def _of_array(values: np.ndarray[Any, Any]) -> Image.Image:
    shape = values.shape
    if len(shape) == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3, 4):
        values = np.moveaxis(values, 0, -1)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    is_flat = values.ndim == 2
    if not (is_flat or (values.ndim == 3 and values.shape[2] in (3, 4))) or 0 in shape:
        raise DataError(
            f"an array of shape {list(shape)} is no picture; give [height, width, 3],"
            " [3, height, width] or [height, width]"
        )
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise DataError(
                "an array of floats is a picture where all lie from 0 to 1; these do not: give the"
                " picture itself, not what a processor made of it"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(
            f"an array of {values.dtype} is no picture; give uint8 from 0 to 255, or floats from 0"
            " to 1"
        )
    return Image.fromarray(np.ascontiguousarray(values))


def _decoded(content: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.load()
            return ImageOps.exif_transpose(opened)
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise DataError(
            f"{name} cannot be read as a picture ({_line(error)}); replace it"
        ) from error


def _line(error: BaseException) -> str:
    # Pillow asserts, without a word, that a file is open.
    unsaid = "its file is closed" if isinstance(error, AssertionError) else type(error).__name__
    return " ".join(str(error).split())[:160] or unsaid


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, np.ndarray | Tensor) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
