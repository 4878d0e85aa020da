"""EasyEdit's dataset for a run of its trainer, on records of ours."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.plugin.host import Host

Convert = Callable[[Any], Any]


class TrainingRecords(Dataset[Any]):
    """EasyEdit's dataset of records, its answers without the space that it puts before them.

    It is as long as the training, since EasyEdit's trainer counts in rounded passes.
    """

    def __init__(
        self,
        host: Host,
        config: Any,
        path: Path,
        processor: Any,
        length: int,
        convert: Convert | None = None,
    ):
        """Have EasyEdit read records in MMEdit's format.

        Args:
            host: EasyEdit.
            config: EasyEdit's hyperparameters, for a transformers model.
            path: of the records.
            processor: of the model.
            length: of the training; records come again as often as it takes.
            convert: turns each part of a batch, such as `edit_inner`, into something else.
        """
        self.records: Any = host.package.VQADataset(str(path), config=config)
        self.records.tok = processor
        self._length = max(length, len(self.records))
        self._convert = convert

    def __len__(self) -> int:
        """Return the number of items that one pass has."""
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return an item as EasyEdit's dataset would hold it."""
        item = dict(self.records[index % len(self.records)])
        for name in ("target", "locality_ground_truth", "multimodal_locality_ground_truth"):
            item[name] = _Unspaced(item[name])
        return item

    def collate_fn(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return a batch as EasyEdit's dataset makes it."""
        parts: dict[str, Any] = self.records.collate_fn(batch)
        if self._convert is None:
            return parts
        # `cond` is text for methods that none of these is.
        return {name: p if name == "cond" else self._convert(p) for name, p in parts.items()}


class _Unspaced(str):
    """An answer that stays as it is when EasyEdit puts a space before it."""

    def __radd__(self, other: str) -> str:
        return str(self) if other == " " else other + str(self)


def item_of(record: Record) -> dict[str, str]:
    """Return a record in MMEdit's format, its pictures with their whole path."""
    return {
        "src": record.request.prompt,
        # EasyEdit drops a record with an empty text, and uses this one nowhere in a training.
        "pred": record.prediction or "?",
        "alt": _answer(record.request),
        "rephrase": record.text_rephrase.prompt,
        "image": _picture(record, record.request),
        "image_rephrase": _picture(record, record.image_rephrase),
        "loc": record.text_locality.prompt,
        "loc_ans": _answer(record.text_locality),
        "m_loc": _picture(record, record.image_locality),
        "m_loc_q": record.image_locality.prompt,
        "m_loc_a": _answer(record.image_locality),
    }


def _answer(query: Query) -> str:
    if query.target is None:
        raise DataError(f"the query {query.prompt!r} has no target to train on; give one")
    return query.target


def _picture(record: Record, query: Query) -> str:
    if query.video is not None:
        raise DataError(
            f"record {record.index} has a query about a video; EasyEdit's dataset for this trainer"
            " takes the path of one picture: give --train records of single pictures"
        )
    if len(query.pictures) != 1 or isinstance(query.pictures[0], Image.Image):
        raise DataError(
            f"record {record.index} has a query with {len(query.pictures)} pictures, or with one"
            " that is no file; EasyEdit's dataset takes the path of one picture"
        )
    return str(Path(query.pictures[0]).resolve())
