"""EasyEdit's ADSDataset: driving scenes as videos, sets of pictures and pictures.

Upstream's module cannot be imported (it looks for a module of another name), its items do not say
in the words of its own editor what they show, and its batches are for no trainer that is there.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.record_pictures import KIND, PICTURES, names_in
from easyedit_dualedit.data.records import Record, load_records, read_items
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import is_ours, known_to_host, load_processor
from easyedit_dualedit.plugin.patching import Patches
from easyedit_dualedit.plugin.picture_items import PICTURE_KEYS, PictureItems
from easyedit_dualedit.plugin.samples import RECORD

NAME = "ADSDataset"
_MODULE = "dataset.adsedit"
_MISNAMED = "llava_ov_processors"


def imported(host: Host, patches: Patches) -> Any:
    """Return EasyEdit's class, whose module is given the one that it looks for."""
    readers = host.module("dataset.processor.llavaov_processors")
    package, _, _ = readers.__name__.rpartition(".")
    sys.modules.setdefault(f"{package}.{_MISNAMED}", readers)
    dataset = getattr(host.module(_MODULE), NAME)
    if not hasattr(host.package, NAME):
        patches.replace(host.package, NAME, dataset)
    return dataset


def reading_for_every_model(
    host: Host, original: Callable[..., None], reader_of: Callable[[Host, str], Any]
) -> Callable[..., None]:
    """Return the dataset's `__init__` that makes items which EasyEdit's editor takes.

    Names of pictures are looked for in `coco_image`, if the hyperparameters have it and the first
    record's are there, else where they lead from the working directory, as upstream has it.

    Args:
        host: EasyEdit.
        original: upstream's, for methods that are not ours.
        reader_of: makes EasyEdit's own reader of pictures for a model's name.
    """

    @functools.wraps(original)
    def __init__(
        self: Any,
        data_dir: str,
        size: int | None = None,
        config: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> None:
        if not is_ours(config):
            original(self, data_dir, size, config, *arguments, **options)
            return
        own = known_to_host(host, config)
        file = Path(data_dir)
        images = _folder_of(file, getattr(config, "coco_image", None))
        records = load_records(file, images, limit=size, allow_outside=config.allow_outside)
        items = read_items(file)
        read = reader_of(host, own.model_name)
        self.config, self.tok, self.vis_processor = own, load_processor(own.name), read
        self._data = PictureItems(
            [_item(record, items[record.index], images) for record in records], read
        )
        self.annotation = [items[record.index] for record in records]

    return __init__


def _folder_of(file: Path, coco_image: Any) -> Path:
    items = [item for item in read_items(file, limit=1) if isinstance(item, dict)]
    names = [name for item in items for field in PICTURES for name in names_in(item, field)]
    if isinstance(coco_image, str | Path) and names and isinstance(names[0], str):
        folder = Path(coco_image)
        if (folder / names[0]).exists():
            return folder
    return Path()


def _item(record: Record, fields: dict[str, Any], images: Path) -> dict[str, Any]:
    """Return a record as EasyEdit's datasets hold it, with paths instead of pictures."""
    kind = fields.get(KIND, "image")
    shown = {
        key: _paths(fields, field, images)
        for key, field in zip(PICTURE_KEYS, PICTURES, strict=True)
    }
    answer = record.request.target
    return {
        "prompt": record.request.prompt,
        "type": kind,
        "file_type": kind,
        "pred": record.prediction,
        "target": answer,
        "rephrase_prompt": record.text_rephrase.prompt,
        **shown,
        "locality_prompt": record.text_locality.prompt,
        "locality_ground_truth": record.text_locality.target,
        "multimodal_locality_prompt": record.image_locality.prompt,
        "multimodal_locality_ground_truth": record.image_locality.target,
        "cond": f"{record.prediction} >> {answer} || {record.request.prompt}",
        RECORD: record,
    }


def _paths(fields: dict[str, Any], field: str, images: Path) -> list[str] | str | None:
    paths = [str(images / name) for name in names_in(fields, field)]
    if not paths:
        return None
    several = fields.get(KIND) in ("video", "multi-image") and not isinstance(fields[field], str)
    return paths if several and field != PICTURES[2] else paths[0]
