"""Records of ComprehendEdit (arXiv 2412.12821), whose fields have names of their own.

Beside the queries of MMEdit's records, those of its test file name the samples nearest to them, by
picture and by question: samples of the same file, which its two models answered wrongly, and
samples of a second file, which they answered rightly. What an edit does to both tells whether it
generalises, and whether it preserves, where it is near.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyedit_dualedit.model.inputs import Query

FIELD_OF: Mapping[str, str] = {
    "src": "question",
    "rephrase": "rephrase",
    "alt": "answer",
    "image": "image",
    "image_rephrase": "image",
    "loc": "locality_prompt",
    "loc_ans": "locality_ground_truth",
    "m_loc": "multimodal_locality_image",
    "m_loc_q": "multimodal_locality_prompt",
    "m_loc_a": "multimodal_locality_ground_truth",
}
"""Field of MMEdit -> that of ComprehendEdit, which has no second picture of an edit."""

NEAREST_WRONG = ("img_topk", "txt_topk")
"""Fields with places in the same file: nearest by picture, nearest by question."""

NEAREST_RIGHT = ("ori_rt_img_topk", "ori_rt_txt_topk")
"""The same, with places in `RIGHT_FILE`."""

RIGHT_FILE = "ComprehendEdit_ori_right.json"
"""Lies beside the test file."""

NEAREST = 4
"""How many count of each field, as in the published evaluation."""


@dataclass(frozen=True)
class Nearest:
    """The samples nearest to an edit, which have its nearest pictures or questions."""

    wrong: tuple[Query, ...]
    """Answered wrongly when the data was made; the targets are the right answers."""
    right: tuple[Query, ...] = ()
    """Answered rightly when the data was made."""


def is_theirs(item: Any) -> bool:
    """Return True for a record with ComprehendEdit's names."""
    return isinstance(item, dict) and "src" not in item and FIELD_OF["src"] in item


def as_mmedit(item: Any) -> Any:
    """Return a record under MMEdit's names too, or one that is none of ComprehendEdit's as it is.

    The rephrased picture is the edit's own, which EasyEdit's trainer measures in its place.
    """
    if not is_theirs(item):
        return item
    named = {ours: item[theirs] for ours, theirs in FIELD_OF.items() if theirs in item}
    return {**item, **named, "pred": ""}


def named(item: Mapping[str, Any], field: str) -> str:
    """Return what a record calls one of MMEdit's fields."""
    return FIELD_OF.get(field, field) if FIELD_OF["src"] in item else field


def is_left_out(item: Any) -> bool:
    """Return True for a record without an answer, which EasyEdit's class leaves out, too."""
    return is_theirs(item) and item.get(FIELD_OF["alt"]) == ""


def nearest_of(
    item: Mapping[str, Any],
    same: Sequence[Any],
    right: Sequence[Any],
    images: Path,
    template: str,
    *,
    allow_outside: bool = False,
) -> Nearest | None:
    """Return the samples nearest to a record, or None if it names none.

    A place that is not in a file, or holds no question with the name of a picture below `images`
    and an answer, is passed by. Whether that picture is there is for `PictureFiles` to say.

    Args:
        item: the record.
        same: every record of its own file.
        right: those of `RIGHT_FILE`; none if there is no such file.
        images: folder that names of pictures are relative to.
        template: what a question is put into.
        allow_outside: whether a name may lead out of `images`.
    """
    given = (images, template, allow_outside)
    wrong = _queries(item, NEAREST_WRONG, same, *given)
    kept = _queries(item, NEAREST_RIGHT, right, *given)
    return Nearest(wrong, kept) if wrong or kept else None


def _queries(
    item: Mapping[str, Any],
    fields: Sequence[str],
    samples: Sequence[Any],
    images: Path,
    template: str,
    allow_outside: bool,
) -> tuple[Query, ...]:
    found = []
    for field in fields:
        places = item.get(field)
        for place in places[:NEAREST] if isinstance(places, list) else ():
            sample = samples[place] if _is_place(place, samples) else None
            parts = [sample.get(key) for key in ("question", "image", "answer")] if sample else []
            if parts and all(isinstance(part, str) and part.strip() for part in parts):
                question, image, answer = parts
                is_outside = Path(image).is_absolute() or ".." in Path(image).parts
                if is_outside and not allow_outside:
                    continue
                text = template.replace("{}", question.strip())
                found.append(Query(text, images / image, answer))
    return tuple(found)


def _is_place(place: Any, samples: Sequence[Any]) -> bool:
    is_whole = isinstance(place, int) and not isinstance(place, bool)
    return is_whole and 0 <= place < len(samples) and isinstance(samples[place], dict)
