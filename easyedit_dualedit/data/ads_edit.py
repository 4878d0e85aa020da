"""Records of ADS-Edit (arXiv 2503.20756): driving scenes as videos, sets of pictures or pictures.

Their fields are those of MMEdit, without a prediction of the unedited model; `image_type` says what
`image` and `image_rephrase` are: see `data/record_pictures.py`.
"""

from typing import Any

from easyedit_dualedit.data.record_pictures import KIND


def is_theirs(item: Any) -> bool:
    """Return True for a record that says what its questions show."""
    return isinstance(item, dict) and KIND in item


def as_mmedit(item: Any) -> Any:
    """Return a record with every field of MMEdit's, or one that is none of theirs as it is."""
    return {"pred": "", **item} if is_theirs(item) else item


def is_left_out(item: Any) -> bool:
    """Return True for a record without an answer, which EasyEdit's class leaves out, too."""
    return is_theirs(item) and item.get("alt") == ""
