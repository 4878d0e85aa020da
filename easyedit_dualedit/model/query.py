"""What is asked: a question, its pictures, and maybe the answer that it should have."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from easyedit_dualedit.errors import DataError

Picture = Image.Image | Path
"""A picture, or the file that holds one."""


@dataclass(frozen=True)
class Query:
    """One question to a model: text, maybe pictures, maybe the answer that it should have.

    Raises:
        DataError: if the prompt is empty, or a target is given and is empty.
    """

    prompt: str
    image: Picture | tuple[Picture, ...] | None = None
    """A picture, or several for models that take them; they come before the text."""
    target: str | None = None

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in order."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise DataError(f"prompt = {self.prompt!r}: an edit or query needs a prompt of text")
        if self.target is not None and (
            not isinstance(self.target, str) or not self.target.strip()
        ):
            raise DataError(f"target = {self.target!r}: a target needs text; give the new answer")
        for name, text in (("prompt", self.prompt), ("target", self.target or "")):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"{name} = {text!r} is no valid Unicode text; mend it") from error


def open_image(image: Image.Image | Path) -> Image.Image:
    """Return a picture as RGB, fully read, its file closed.

    Raises:
        DataError: if the file is missing, truncated or no picture.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"no picture at {image}; check the images folder") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise DataError(f"{image} cannot be read as a picture ({error}); replace it") from error
