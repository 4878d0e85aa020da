"""Pictures of the batches to come, decoded by other processes while this one computes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import open_image
from easyedit_dualedit.model.prompts import OpenedPictures

_AHEAD = 4
"""Batches that each worker may be ahead."""

Decoded = list[tuple[Path, "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]"]]


class PicturesAhead:
    """Yields batches in order, their pictures decoded already.

    What a step computes does not depend on who decoded its pictures: with any number of workers,
    and none, it is the same to the bit.
    """

    def __init__(
        self,
        batch_of: Callable[[int], Sequence[Record]],
        numbers: range,
        opened: OpenedPictures,
        workers: int,
    ):
        """Start the workers.

        Args:
            batch_of: returns the records of a batch by its number.
            numbers: of the batches that will be asked for, in order.
            opened: is given the decoded pictures.
            workers: processes that decode; 0 leaves it to whoever needs a picture.
        """
        self._batch_of = batch_of
        self._opened = opened
        self._decoded: Iterator[Decoded] | None = None
        if workers and len(numbers):
            loader = DataLoader(
                _Files([_files(batch_of(number)) for number in numbers]),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=_AHEAD,
                collate_fn=_as_it_is,
                generator=torch.Generator(),  # the global one is the training's
            )
            self._decoded = iter(loader)

    def batch(self, number: int) -> Sequence[Record]:
        """Return the records of a batch; numbers come in the order that was told."""
        records = self._batch_of(number)
        if self._decoded is not None:
            for path, pixels in next(self._decoded):
                self._opened.keep(path, Image.fromarray(pixels))
        return records

    def close(self) -> None:
        """Stop the workers."""
        self._decoded = None


class _Files(Dataset[Decoded]):
    """Decodes the files of a batch."""

    def __init__(self, files: Sequence[Sequence[Path]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: int) -> Decoded:
        decoded: Decoded = []
        for path in self._files[place]:
            try:
                decoded.append((path, np.asarray(open_image(path))))
            except DataError:
                continue  # told by who needs it
        return decoded


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded


def _files(records: Sequence[Record]) -> list[Path]:
    """Return the files of the pictures that some records show, each once."""
    shown = (one for record in records for query in record.queries for one in query.pictures)
    return list(dict.fromkeys(one for one in shown if isinstance(one, Path)))
