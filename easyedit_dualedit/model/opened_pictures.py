"""Pictures that were decoded already."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from PIL import Image

from easyedit_dualedit.model.inputs import open_image, picture_key
from easyedit_dualedit.model.pictures import Picture

OPENED_BYTES = 2**27
"""Of decoded pictures: a batch of photographs in full size."""


class OpenedPictures:
    """Decodes each file once for as long as its picture fits into a budget of memory."""

    def __init__(self, budget: int = OPENED_BYTES):
        """Keep at most `budget` bytes of decoded pictures."""
        self._budget = budget
        self._size = 0
        self._held: OrderedDict[Hashable, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["OpenedPictures"], tuple[int]]:
        """Return how to copy or pickle: without what is held."""
        return OpenedPictures, (self._budget,)

    def open(self, picture: Picture) -> Image.Image:
        """Return a picture as RGB, upright; nobody may change it.

        Raises:
            DataError: if the file is missing, truncated or no picture.
        """
        if isinstance(picture, Image.Image):
            return open_image(picture)
        key = picture_key(picture)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        opened = open_image(picture)
        self.keep(picture, opened)
        return opened

    def keep(self, picture: Picture, opened: Image.Image) -> None:
        """Keep what somebody else has decoded of a file."""
        key, size = picture_key(picture), _bytes_of(opened)
        with self._lock:
            if key in self._held or size > self._budget:
                return
            while self._size + size > self._budget:
                self._size -= _bytes_of(self._held.popitem(last=False)[1])
            self._held[key] = opened
            self._size += size


def _bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * 3
