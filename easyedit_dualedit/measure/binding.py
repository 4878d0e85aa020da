"""What an edit does to the binding of a picture to a thing: names of questions and of numbers.

After an edit that gives a picture another thing's name, models keep answering other questions about
the picture as before, or confuse the two things (Entity Identity Confusion, arXiv 2605.06096).
"""

from collections.abc import Mapping

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.model.inputs import Query

TEXT = "binding_text"
PICTURE = "binding_picture"
BESIDE = "binding_beside"

TEXT_UNTOUCHED = "text_untouched"
PICTURE_OLD = "picture_old"
PICTURE_NEW = "picture_new"
PICTURE_NEITHER = "picture_neither"
BESIDE_UNTOUCHED = "beside_untouched"

ASKED: Mapping[str, str] = {
    TEXT_UNTOUCHED: TEXT,
    PICTURE_OLD: PICTURE,
    PICTURE_NEW: PICTURE,
    PICTURE_NEITHER: PICTURE,
    BESIDE_UNTOUCHED: BESIDE,
}
"""Metric -> the question whose answer it is about."""

UNTOUCHED = (TEXT_UNTOUCHED, BESIDE_UNTOUCHED)
"""Metrics that compare with the unedited model's answer."""

SHARES = (PICTURE_OLD, PICTURE_NEW, PICTURE_NEITHER)
"""Metrics that tell answers apart and together are 1: none of them is a mistake by itself."""


def binding_questions(binding: Binding | None) -> dict[str, Query]:
    """Return the questions that a record has, by name."""
    if binding is None:
        return {}
    every = {TEXT: binding.text, PICTURE: binding.picture, BESIDE: binding.beside}
    return {name: query for name, query in every.items() if query is not None}
