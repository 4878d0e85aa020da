"""What the questions of a record show: a picture, several, a video, or nothing.

A record's `image_type`, as ADS-Edit's records have it, says what its `image` and `image_rephrase`
are. Records without one show one picture.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import ShownLike
from easyedit_dualedit.model.videos import Video

PICTURES = ("image", "image_rephrase", "m_loc")
"""The fields that name what a question shows."""

KIND = "image_type"
"""Field that says what the edit's own questions show."""

RATE, COUNT = "frame_rate", "frame_count"
"""Fields that a record with a video may have: frames a second, and how many frames to show."""

_TEXT, _VIDEO = "text", "video"
_KINDS = ("image", "single-image", "multi-image", _VIDEO, _TEXT)


def names_in(item: Mapping[str, Any], field: str) -> list[Any]:
    """Return the names of pictures, of frames or of a video that a field of a record holds.

    They are in order; views of a camera each, as ADS-Edit has them, in the file's own order.
    """
    if _shows_nothing(item, field):
        return []
    value = item.get(field)
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def problems_of_pictures(
    index: int, item: Mapping[str, Any], field: str, name: str, images: Path | None
) -> list[str]:
    """Return what is wrong with one of `PICTURES` in a record.

    Args:
        index: of the record.
        item: the record.
        field: one of `PICTURES`.
        name: what the record calls it.
        images: folder of the pictures; None means that they are not looked for.
    """
    kind = item.get(KIND)
    if kind is not None and kind not in _KINDS:
        return [f"record {index}, field {KIND}: {kind!r} is none of {', '.join(_KINDS)}"]
    if _shows_nothing(item, field):
        return []
    if field not in item:
        return [f"record {index} has no field {name}"]
    place = f"record {index}, field {name}"
    names = names_in(item, field)
    if isinstance(item[field], list | Mapping) and (field == "m_loc" or kind is None):
        return [f"{place}: {item[field]!r} is no text"]
    if not names:
        return [f"{place}: an empty list; name at least one picture"]
    problems = []
    for each in names:
        if not isinstance(each, str) or not each.strip():
            problems.append(f"{place}: {each!r} is no text")
        elif not _is_unicode(each):
            problems.append(f"{place}: {each!r} is no valid Unicode text")
        elif images is not None and not _is_there(images / each, item, field):
            problems.append(f"{place}: no picture at {images / each}")
    if not problems:
        try:
            shown_in(item, field, Path())
        except DataError as error:
            problems.append(f"{place}: {error}")
    return problems


def shown_in(item: Mapping[str, Any], field: str, images: Path) -> ShownLike | None:
    """Return what one of `PICTURES` of a record shows.

    Args:
        item: the record.
        field: one of `PICTURES`.
        images: folder that names are relative to.

    Raises:
        DataError: if it is a video whose `frame_rate` or `frame_count` is out of range.
    """
    paths = [images / name for name in names_in(item, field)]
    if not paths:
        return None
    if field != "m_loc" and item.get(KIND) == _VIDEO:
        source = paths if isinstance(item[field], list | Mapping) else paths[0]
        return Video(source, item.get(RATE), item.get(COUNT))
    return paths if len(paths) > 1 else paths[0]


def leads_out(name: Any) -> bool:
    """Return whether the name of a picture leads out of the folder that it is relative to."""
    path = Path(name) if isinstance(name, str) else Path()
    return path.is_absolute() or ".." in path.parts


def _shows_nothing(item: Mapping[str, Any], field: str) -> bool:
    return field != "m_loc" and item.get(KIND) == _TEXT


def _is_there(path: Path, item: Mapping[str, Any], field: str) -> bool:
    try:
        # A video may be a folder of frames.
        whole = field != "m_loc" and item.get(KIND) == _VIDEO and isinstance(item[field], str)
        return path.is_file() or (whole and path.is_dir())
    except (OSError, ValueError):  # a text that is too long for a name, or holds a zero
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return True
