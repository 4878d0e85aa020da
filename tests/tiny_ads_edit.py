"""Records in ADS-Edit's format, with drawn videos, sets of pictures and pictures."""

import json
from pathlib import Path
from typing import Any

from tiny_editors import picture

from easyedit_dualedit.data.records import Record, load_records

SIDE = 384
"""Of frames and pictures: EasyEdit's reader of videos brings all to this size."""

KINDS = ("video", "multi-image", "single-image", "text")
COLOURS = ("red", "green", "blue", "yellow")
_TARGETS = ("turns blue", "two", "a circle", "top left")


def ads_edit_file(folder: Path, count: int = 4, kinds: tuple[str, ...] = KINDS) -> Path:
    """Return a file of records, one kind after the other; pictures lie beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    items = [_item(folder, index, kinds[index % len(kinds)]) for index in range(count)]
    path = folder / "ads.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


def ads_edit_records(folder: Path, count: int = 4, kinds: tuple[str, ...] = KINDS) -> list[Record]:
    """Return such records."""
    return load_records(ads_edit_file(folder, count, kinds), folder)


def _item(folder: Path, index: int, kind: str) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for shift, field in enumerate(("image", "image_rephrase")):
        count = {"video": 4, "multi-image": 2}.get(kind, 1)
        names = [f"{field}_{index}_{place}.png" for place in range(count)]
        for place, name in enumerate(names):
            colour = COLOURS[(index + place * (index + 1) + 2 * shift) % 4]
            picture(colour, (30, 40)).resize((SIDE, SIDE)).save(folder / name)
        views = dict(zip(("CAM_FRONT", "CAM_BACK"), names, strict=False))
        shown[field] = {"video": names, "multi-image": views}.get(kind, names[0])
    picture(COLOURS[index % 4], (40, 30)).resize((SIDE, SIDE)).save(folder / f"m_loc_{index}.png")
    return {
        "data_type": "Safe driving",
        "image_type": kind,
        "source": "drawn",
        "src": f"What happens to circle {index}?",
        "rephrase": f"Circle {index} does what?",
        "alt": _TARGETS[index % 4],
        **({} if kind == "text" else shown),
        "original_gr": "It moves.",
        "loc": f"nq question: where is the star {index}",
        "loc_ans": "top left",
        "m_loc": f"m_loc_{index}.png",
        "m_loc_q": "How many squares are there?",
        "m_loc_a": "three",
    }
