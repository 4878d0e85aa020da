"""A few records as ComprehendEdit's files have them, in their folders."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")


def comprehend_edit_folder(folder: Path) -> Path:
    """Return a folder with a file to train on, one to test on, and one of what was right."""
    (folder / "GQA" / "images").mkdir(parents=True)
    for place, colour in enumerate(COLOURS):
        Image.new("RGB", (32 + place, 30), colour).save(folder / "GQA" / "images" / f"{place}.jpg")
    for mode in ("train", "test"):
        records = [_record(place, nearest=mode == "test") for place in range(4)]
        _write(folder / f"ComprehendEdit_{mode}.json", records)
    right = [
        {"image": _image(place), "question": f"Is it {COLOURS[place]}?", "answer": "yes"}
        for place in range(4)
    ]
    _write(folder / "ComprehendEdit_ori_right.json", right)
    return folder


def _record(place: int, *, nearest: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "image": _image(place),
        "question": f"What colour is thing {place}?",
        "rephrase": f"Thing {place} has which colour?",
        "answer": "" if place == 2 else COLOURS[(place + 1) % 4],
        "source": "GQA",
        "Category": "object attributes",
        "pid": place,
        "locality_prompt": "where is the star",
        "locality_ground_truth": "top left",
        "multimodal_locality_image": _image((place + 2) % 4),
        "multimodal_locality_prompt": "How many squares are there?",
        "multimodal_locality_ground_truth": "three",
    }
    if nearest:
        others = [other for other in range(4) if other != place]
        for name in ("img", "txt"):
            record |= {f"{name}_topk": others, f"{name}_last_topk": others[::-1]}
            record |= {f"ori_rt_{name}_topk": [place, 99], f"ori_rt_{name}_last_topk": [place]}
    return record


def _image(place: int) -> str:
    return f"GQA/images/{place}.jpg"


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(records), encoding="utf-8")
