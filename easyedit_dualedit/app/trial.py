"""What somebody tries on the page: one edit, and what else is asked before and after it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query, open_image
from easyedit_dualedit.model.pictures import PictureLike

LARGEST_SIDE = 1536
"""Pixels; larger pictures are made smaller when they come in, so that sessions stay small."""

SAME = "the same question"


@dataclass(frozen=True)
class Trial:
    """A picture, a question and its new answer, and the questions asked beside it."""

    picture: Image.Image | None = None
    prompt: str = ""
    target: str = ""
    rephrase: str = ""
    """The question in other words, about the same picture."""
    other_picture: Image.Image | None = None
    """What the same question is asked about, too."""
    unrelated: str = ""
    """Another question about the same picture; its answer should stay."""
    name: str = ""
    """Of an example: what its picture shows."""

    def asked(self) -> list[tuple[str, Query]]:
        """Return all that is asked: what a question is for, and the question; the same one first.

        Raises:
            DataError: if there is no question.
        """
        queries = [(SAME, self.query())]
        if self.rephrase.strip():
            queries.append(("in other words", Query(self.rephrase.strip(), self.picture)))
        if self.other_picture is not None:
            queries.append(("another picture", Query(self.prompt.strip(), self.other_picture)))
        if self.unrelated.strip():
            queries.append(("something else", Query(self.unrelated.strip(), self.picture)))
        return queries

    def query(self) -> Query:
        """Return the question alone.

        Raises:
            DataError: if there is none.
        """
        if not self.prompt.strip():
            raise DataError("there is no question yet; write one beside the picture")
        return Query(self.prompt.strip(), self.picture)

    def request(self) -> Query:
        """Return the edit: the question with its new answer.

        Raises:
            DataError: if there is no question, or no answer.
        """
        query = self.query()
        if not self.target.strip():
            raise DataError("it does not say yet what the answer should be; write the new answer")
        return Query(query.prompt, query.image, self.target.strip())

    def texts(self) -> dict[str, str]:
        """Return the texts, by field."""
        names = ("prompt", "target", "rephrase", "unrelated", "name")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(
        cls, texts: Mapping[str, Any], picture: PictureLike | None, other: PictureLike | None
    ) -> Self:
        """Return a trial made of texts as `texts` gives them, and two pictures or none.

        Raises:
            DataError: if a picture cannot be read.
        """
        known = {name: str(texts.get(name, "")) for name in cls().texts()}
        return cls(**known, picture=taken_in(picture), other_picture=taken_in(other))


def taken_in(picture: PictureLike | None) -> Image.Image | None:
    """Return a picture as RGB, upright, and no larger than `LARGEST_SIDE`.

    Raises:
        DataError: if it cannot be read.
    """
    if picture is None:
        return None
    image = open_image(picture)
    if max(image.size) > LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return image
