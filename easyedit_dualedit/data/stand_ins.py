"""Stand-ins for pictures that one does not have, to try everything but the numbers."""

import hashlib
import io
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image, ImageDraw

from easyedit_dualedit.data.record_pictures import PICTURES, names_in
from easyedit_dualedit.data.records import read_items
from easyedit_dualedit.errors import ConfigError, DataError

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
_SMALLEST = 8
_SHAPES = 3


def picture_names(path: Path, *, limit: int | None = None) -> list[str]:
    """Return the picture names that a file of records asks for, each once, in order.

    Fields that hold no text are passed over; `load_records` names them.

    Args:
        path: JSON file as `load_records` takes it.
        limit: how many records to look at; None means all.

    Raises:
        DataError: if the file cannot be read, or holds no list of records.
    """
    items = [item for item in read_items(path, limit=limit) if isinstance(item, dict)]
    names = [name for item in items for field in PICTURES for name in names_in(item, field)]
    return list(dict.fromkeys(name for name in names if isinstance(name, str) and name.strip()))


def draw_stand_ins(names: Iterable[str], folder: Path, *, size: int = 48) -> int:
    """Draw a small picture for every name that is not there yet; return how many were drawn.

    They are for trying the pipeline on records whose pictures one does not have. Numbers measured
    on them mean nothing: what a stand-in shows has nothing to do with what is asked about it.

    A picture follows from its name alone, so it is the same everywhere; different names look
    different. Each file is written whole or not at all. What is there is left as it is.

    Args:
        names: relative to `folder`, with subfolders if need be, ending in .jpg, .jpeg or .png.
        folder: made if it is not there.
        size: width and height in pixels.

    Raises:
        DataError: if a name leads out of the folder or is no picture's, before anything is drawn;
            or if a file cannot be written.
        ConfigError: if the size is too small for shapes to show.
    """
    if size < _SMALLEST:
        raise ConfigError(f"size = {size}: a stand-in has at least {_SMALLEST} pixels a side")
    wanted = {name: _place(name, folder) for name in names}
    missing = {name: place for name, place in wanted.items() if not _is_file(place)}
    inside = folder.resolve()
    for name, place in missing.items():
        _write(_drawn(name, size), place, inside, name)
    return len(missing)


def _place(name: str, folder: Path) -> Path:
    suffix = PurePosixPath(name).suffix
    writable = "\0" not in name and not any("\ud800" <= letter <= "\udfff" for letter in name)
    if suffix.lower() not in _FORMATS or not writable:
        raise DataError(
            f"picture name {name!r}: stand-ins are drawn for names ending in"
            f" {', '.join(_FORMATS)}; mend the record"
        )
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if any(kind.anchor or ".." in kind.parts for kind in kinds):
        raise _outside(name, folder)
    return folder / name


def _outside(name: str, folder: Path) -> DataError:
    return DataError(
        f"picture name {name!r} leads out of {folder}; give names relative to the folder of the"
        " pictures"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _drawn(name: str, size: int) -> Image.Image:
    """Return shapes on a ground, their kinds, places and colours taken from the name's hash."""
    values = hashlib.sha512(name.encode()).digest()
    image = Image.new("RGB", (size, size), tuple(values[:3]))
    draw = ImageDraw.Draw(image)
    for start in range(3, 3 + 8 * _SHAPES, 8):
        kind, across, down, width, height, *colour = values[start : start + 8]
        left, top = across * size // 384, down * size // 384
        right = left + size // 6 + width * size // 768
        bottom = top + size // 6 + height * size // 768
        box, fill = (left, top, right, bottom), tuple(colour)
        if kind % 3 == 0:
            draw.ellipse(box, fill=fill)
        elif kind % 3 == 1:
            draw.rectangle(box, fill=fill)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) // 2, top)], fill=fill)
    return image


def _write(image: Image.Image, place: Path, inside: Path, name: str) -> None:
    content = io.BytesIO()
    image.save(content, _FORMATS[place.suffix.lower()])
    # Not by the picture's own name, which may be as long as names can be; and not by one name for
    # all, since shards of a run may draw at the same time.
    part = place.with_name(f".{hashlib.sha256(name.encode()).hexdigest()[:16]}-{os.getpid()}.part")
    try:
        # A link within the folder may lead to pictures that are not ours to add to.
        if not place.parent.resolve().is_relative_to(inside):
            raise _outside(name, inside)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content.getvalue())
            os.replace(part, place)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {place}: {error.strerror}") from error
