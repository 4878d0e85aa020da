"""EasyEdit's third multimodal dataset, for every model that the other two are read for.

Upstream's class makes the image tensors of its own BLIP-2 whatever the model, gives no picture that
its editor could show to another one, and is not among the datasets that the editor takes. It takes
the text-locality question for its answer.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.comprehend_edit import NEAREST_RIGHT, NEAREST_WRONG
from easyedit_dualedit.data.records import Record, load_records, read_items
from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.models import OWN_MODELS, is_ours, known_to_host, load_processor

NAME = "ComprehendEditDataset"


def reading_for_every_model(host: Host, original: Callable[..., None]) -> Callable[..., None]:
    """Return the dataset's `__init__` that reads records for transformers models, too."""

    @functools.wraps(original)
    def __init__(
        self: Any,
        data_dir: str,
        size: int | None = None,
        config: Any = None,
        *arguments: Any,
        **options: Any,
    ) -> None:
        if not is_ours(config) or config.model_name in OWN_MODELS:
            original(self, data_dir, size, config, *arguments, **options)
            return
        own = known_to_host(host, config)
        mode, topk = options.get("mode", "train"), options.get("topk", -1)
        read = dataset_reader(host, own.model_name)
        file = Path(data_dir) / f"ComprehendEdit_{mode}.json"
        outside = config.allow_outside
        records = load_records(file, Path(data_dir), limit=size, allow_outside=outside)
        fields = read_items(file)
        self.config, self.tok, self.vis_processor = own, load_processor(own.name), read
        self.mode, self.topk, self.prompt, self.max_length = mode, topk, "{}", 32
        self.vis_root = self.rephrase_root = data_dir
        self._data = [_item(record, fields[record.index], read, topk) for record in records]

    return __init__


def dataset_reader(host: Host, model_name: str) -> Any:
    """Return EasyEdit's own reader of pictures for a model's name."""
    if host.module("util.vl_utils").is_qwen_vl_model(model_name):
        return host.module("dataset.processor.qwen2vl_processors").Qwen2VLProcessor()
    return host.module("dataset.processor.llavaov_processors").LLaVAOneVisionProcessor()


def _item(
    record: Record, fields: dict[str, Any], read: Callable[..., Any], topk: int
) -> dict[str, Any]:
    """Return a record as EasyEdit's datasets hold it, with what only this one has."""
    picture, locality = (
        read(str(query.image), file_type="image")
        for query in (record.request, record.image_locality)
    )
    answer = record.request.target
    return {
        "prompt": record.request.prompt,
        "pred": record.prediction,
        "target": answer,
        "rephrase_prompt": record.text_rephrase.prompt,
        "image": picture,
        "image_rephrase": picture,
        "locality_prompt": record.text_locality.prompt,
        "locality_ground_truth": record.text_locality.target,
        "multimodal_locality_image": locality,
        "multimodal_locality_prompt": record.image_locality.prompt,
        "multimodal_locality_ground_truth": record.image_locality.target,
        "cond": f"{record.prediction} >> {answer} || {record.request.prompt}",
        "file_type": "image",
        "image_path": str(record.request.image),
        "pid": fields.get("pid", record.index),
        "task": fields.get("Category", ""),
        "source": fields.get("source", "other"),
        **{
            name: fields[name][:topk]
            for name in (*NEAREST_WRONG, *NEAREST_RIGHT)
            if topk > 0 and name in fields
        },
    }
