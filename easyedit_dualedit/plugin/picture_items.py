"""Items of a dataset whose pictures are read when one is taken, and held by nobody."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image
from torch.utils.data import Dataset

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.pictures import unreadable
from easyedit_dualedit.plugin.samples import ITEM_KEYS, RECORD
from easyedit_dualedit.train.drawn_targets import answering

PICTURE_KEYS: Final = ("image", "image_rephrase", "multimodal_locality_image")
"""Keys of an item whose values are pictures, a video or None."""

_SHOWN = 5


class PictureItems(list[dict[str, Any]]):
    """Items with paths; taken by index, they have what a reader makes of these."""

    def __init__(
        self, items: Sequence[dict[str, Any]], read: Callable[..., Any], *, is_plain: bool = False
    ):
        """Keep items and reader.

        Args:
            items: with a path, several or None under each of `PICTURE_KEYS`.
            read: EasyEdit's reader, called with what an item has and `file_type`.
            is_plain: whether it gives pictures as they are in their files.
        """
        super().__init__(items)
        self._read = read
        self._is_plain = is_plain

    def __getitem__(self, index: Any) -> Any:
        """Return an item with its pictures read, or some items whose pictures are not."""
        if isinstance(index, slice):
            return PictureItems(super().__getitem__(index), self._read, is_plain=self._is_plain)
        item = dict(super().__getitem__(index))
        for key in PICTURE_KEYS:
            kind = item["file_type"] if key != PICTURE_KEYS[2] else "image"
            item[key] = None if item[key] is None else self._read(item[key], file_type=kind)
        return item

    def unread(self, index: int) -> dict[str, Any]:
        """Return an item with paths where these stand for the same pictures, else as by index."""
        return super().__getitem__(index) if self._is_plain else self[index]


class DrawnItems(Dataset[Any]):
    """A dataset of EasyEdit's, some of whose records have another target."""

    def __init__(self, data: Any, drawn: Mapping[int, str]):
        """Keep the dataset, and the targets by the place of their record."""
        self._of = data
        self._drawn = drawn

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._of)

    def __getitem__(self, index: int) -> Any:
        """Return an item, with its drawn target if it has one."""
        item = self._of[index]
        target = self._drawn.get(index)
        if target is None:
            return item
        changed = {**item, "target": target}
        if RECORD in item:
            changed[RECORD] = answering(item[RECORD], target)
        return changed


def path_of(file: str, file_type: str) -> str:  # noqa: ARG001  (as EasyEdit's readers are called)
    """Return the path of a picture, after a look whether there is one.

    Raises:
        DataError: if there is none.
    """
    try:
        with Image.open(file):
            return file
    except OSError as error:
        raise unreadable(Path(file), error) from error


def require_texts_in(name: str, data: Any, parts: Sequence[str] = tuple(ITEM_KEYS)) -> None:
    """Check the questions and answers that a dataset of EasyEdit's holds, if it shows them.

    Args:
        name: of the dataset, for the message.
        data: the dataset.
        parts: of a training batch that are needed, keys of `ITEM_KEYS`; the texts of the others may
            be blank.

    Raises:
        DataError: naming the first that are no texts, or blank, by record and field.
    """
    items = getattr(data, "_data", None)
    if not isinstance(items, list):
        return
    needed = {key for part in parts for key in ITEM_KEYS[part][:2]}
    keys = dict.fromkeys(key for texts in ITEM_KEYS.values() for key in texts[:2])
    # Iterated over and not taken by index: nothing is read.
    bad = [
        f"record {place}: {key} = {item[key]!r}"
        for place, item in enumerate(items)
        if isinstance(item, Mapping)
        for key in keys
        if key in item
        and not (isinstance(item[key], str) and (key not in needed or item[key].strip()))
    ]
    if bad:
        more = f", and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise DataError(
            f"{name}: a text that is not blank is needed in {'; '.join(bad[:_SHOWN])}{more}; mend"
            " the file, or leave the records out"
        )
