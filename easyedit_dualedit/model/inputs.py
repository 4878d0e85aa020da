"""What goes into a model: queries and the pictures that they show, and batches of token rows.

A `Query` is what a user asks and shows; its pictures are read here, upright, and told apart. A
`TokenLayout` says which position of a row of tokens is what, a `Batch` holds the rows of several
queries.
"""

import dataclasses
import functools
import hashlib
import operator
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.pictures import (
    SUFFIXES,
    Picture,
    PictureLike,
    in_eight_bits,
    picture_of,
    unreadable,
)
from easyedit_dualedit.model.videos import Video, holds_video

IGNORED = -100
"""Label of a position that carries no loss, as in transformers."""

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls keys and values of earlier tokens: from 5.24 on, and before."""

NO_WORD = -1
"""Stands for a token id at positions that no answer token follows."""

Shown = Picture | Video
"""One thing that a question is about."""

ShownLike = PictureLike | Video | Sequence[PictureLike]
"""What `shown_of` takes."""


@dataclass(frozen=True)
class Query:
    """One question to a model: text, maybe pictures or a video, maybe the answer to have.

    Raises:
        DataError: if the prompt is empty, a target is given and is empty, or something that is no
            picture stands for one.
    """

    prompt: str
    image: ShownLike | None = None
    """What the question shows, before its text: a picture in any form of `picture_of`, several for
    models that take them, or a `Video`; the path of a video file or of a folder of frames is one.
    Kept as PIL pictures, paths, or a video."""
    target: str | None = None

    @property
    def shown(self) -> tuple[Shown, ...]:
        """The pictures, in order, or the video; empty for text alone."""
        if self.image is None:
            return ()
        known: Any = self.image
        return known if isinstance(known, tuple) else (known,)

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """The pictures, in order; none where a video is shown."""
        return tuple(each for each in self.shown if not isinstance(each, Video))

    @property
    def files(self) -> tuple[Picture, ...]:
        """The pictures and files of which everything shown is made, frames of a video included.

        Raises:
            DataError: if there is no video at its path.
        """
        return tuple(part for each in self.shown for part in files_of(each))

    @property
    def video(self) -> Video | None:
        """The video, if one is shown."""
        return self.image if isinstance(self.image, Video) else None

    @property
    def shown_keys(self) -> tuple[Hashable, ...]:
        """What tells each of `shown` from others, and raises what `shown_key` raises."""
        return self._held_keys or tuple(shown_key(each) for each in self.shown)

    @functools.cached_property
    def _held_keys(self) -> tuple[Hashable, ...]:
        # Files may change; pictures in memory stay, and a look at every pixel takes long.
        is_held = not any(isinstance(part, Path) for part in self.files)
        return tuple(shown_key(each) for each in self.shown) if is_held else ()

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
        object.__setattr__(self, "image", shown_of(self.image))


def shown_of(value: Any) -> Shown | tuple[Picture, ...] | None:
    """Return what a question shows: nothing, a picture, several, or a video.

    Args:
        value: a `Video`; a path of a video file or of a folder of frames, also as text; a picture
            in any form of `picture_of`; a list of those; or None.

    Raises:
        DataError: if it is none of these, or a picture that is no path cannot be read.
    """
    if value is None or isinstance(value, Video):
        return value
    if isinstance(value, list | tuple):
        several = tuple(picture_of(picture) for picture in value)
        # One picture in a list is that picture, as transformers has it.
        return several[0] if len(several) == 1 else several or None
    if isinstance(value, str) and value and ":" not in value and "\0" not in value:
        value = Path(value)  # text that is neither an address nor a picture's own data
    one = value if isinstance(value, Path) else picture_of(value)
    if isinstance(one, Path) and one.suffix.lower() not in SUFFIXES and holds_video(one):
        return Video(one)
    return one


def shown_key(shown: Shown) -> Hashable:
    """Return what tells a picture or a video from others: what it shows, or its files.

    Raises:
        DataError: if a picture that is no file cannot be read.
    """
    if not isinstance(shown, Video):
        return picture_key(shown)
    return ("video", *(picture_key(part) for part in files_of(shown)), shown.rate, shown.count)


def files_of(shown: Shown) -> tuple[Picture, ...]:
    """Return the pictures or files that a picture or a video is made of, in order."""
    if not isinstance(shown, Video):
        return (shown,)
    frames = shown.frames
    return (Path(str(shown.source)),) if frames is None else frames


def open_image(picture: PictureLike) -> Image.Image:
    """Return a picture as RGB, fully read, upright, its file closed.

    A photo is turned as its EXIF orientation says, as transformers' own loader does.

    Raises:
        DataError: if the file is missing, truncated or no picture.
    """
    known = picture if isinstance(picture, Image.Image | Path) else picture_of(picture)
    try:
        with nullcontext(known) if isinstance(known, Image.Image) else Image.open(known) as opened:
            upright = ImageOps.exif_transpose(opened)
            is_deep = upright.mode.startswith(("I", "F"))
            return (in_eight_bits(upright) if is_deep else upright).convert("RGB")
    except Exception as error:  # a damaged file makes Pillow raise almost anything
        raise unreadable(known, error) from error


def picture_key(picture: Picture) -> Hashable:
    """Return what tells a picture from others: what it shows; or its file's name, time and size.

    Raises:
        DataError: if a picture that is no file cannot be read.
    """
    if isinstance(picture, Path):
        try:
            status = picture.stat()
        except OSError:  # reading it will say what is wrong
            return str(picture)
        return str(picture), status.st_mtime_ns, status.st_size
    return content_digest(picture)


def content_digest(picture: Picture) -> str:
    """Return a hash of what a model sees of a picture: its size and its upright RGB values.

    Raises:
        DataError: if it cannot be read.
    """
    image = open_image(picture)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class TokenLayout:
    """Which position of each row is what. Masks are True where the name applies."""

    vision: Tensor
    """Image tokens, bool [b, s]."""
    text: Tensor
    """Prompt text that the text adapter may change, bool [b, s]: never target or padding."""
    answered: Tensor
    """Tokens behind the prompt, counted up to and with each position, long [b, s]; else 0."""
    gate: Tensor
    """Index of the last prompt token, long [b]."""
    last: Tensor
    """Index of the last real token, target included, long [b]."""
    real: Tensor
    """Everything but padding, bool [b, s]."""
    ids: Tensor
    """Token ids, long [b, s]; 0 behind a prompt that ended before the first position."""

    @classmethod
    def of(
        cls, input_ids: Tensor, real: Tensor, gate: Tensor, vision: Tensor, bos: int | None
    ) -> Self:
        """Return what each position of tokenised rows is.

        Args:
            input_ids: token ids, long [b, s].
            real: True at everything but padding, bool [b, s].
            gate: index of the last prompt token of each row, long [b].
            vision: True where the token of a picture stands, bool [b, s].
            bos: id of the token that begins a row; it is no text.
        """
        width = input_ids.shape[1]
        positions = torch.arange(width, device=input_ids.device)
        prompt = real & (positions <= gate[:, None])
        vision = vision & prompt
        after_vision = torch.where(vision, positions, -1).amax(1) + 1
        first = torch.where(real, positions, width).amin(1)
        start = torch.where(vision.any(1), after_vision, first).clamp(max=width - 1)
        # BOS comes first, or right after the image tokens of BLIP-2 and PaliGemma.
        is_bos = input_ids.gather(1, start[:, None])[:, 0].eq(-1 if bos is None else bos)
        text = prompt & (positions >= (start + is_bos.long())[:, None])
        answered, last = (real & (positions > gate[:, None])).cumsum(1), last_real_index(real)
        return cls(vision, text, answered, gate, last, real, input_ids)

    @classmethod
    def of_answer(cls, answered: Tensor, width: int) -> Self:
        """Return the layout of a forward that continues rows behind their prompts.

        Args:
            answered: how many answer tokens stand before it, long [b].
            width: tokens of each row.
        """
        places = answered[:, None] + torch.arange(1, width + 1, device=answered.device)
        real = torch.ones_like(places, dtype=torch.bool)
        # The prompt ended before the first position.
        gate, last = torch.full_like(answered, -1), torch.full_like(answered, width - 1)
        return cls(~real, ~real, places, gate, last, real, torch.zeros_like(places))

    @property
    def answer(self) -> Tensor:
        """Tokens that follow the prompt, bool [b, s]."""
        return self.real & (self.answered > 0)

    def to(self, device: torch.device) -> "TokenLayout":
        """Return the layout on a device."""
        return self._changed(lambda part: part.to(device))

    def without_prompt_end(self) -> "TokenLayout":
        """Return the layout with the last prompt token no longer counted as prompt text."""
        positions = torch.arange(self.text.shape[1], device=self.text.device)
        return dataclasses.replace(self, text=self.text & (positions != self.gate[:, None]))

    def select(self, rows: Tensor) -> "TokenLayout":
        """Return the layout of some rows, long [r]."""
        return self._changed(lambda part: part[rows])

    def repeated(self, times: int) -> "TokenLayout":
        """Return the layout of rows that are repeated in place, as beam search does."""
        return self._changed(lambda part: part.repeat_interleave(times, 0))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "TokenLayout":
        return TokenLayout(*(change(getattr(self, f.name)) for f in dataclasses.fields(self)))


@dataclass(frozen=True)
class Batch:
    """Model inputs with their layout and, where there are targets, labels."""

    inputs: dict[str, Tensor]
    layout: TokenLayout
    target: Tensor
    """Positions of target tokens, bool [b, s]; the end-of-turn token is none of them."""
    labels: Tensor
    """Token ids to predict, aligned with `input_ids`, IGNORED elsewhere; long [b, s]."""

    def following_words(self, end: int) -> Tensor:
        """Return the answer token that follows each position, long [b, s]; else `NO_WORD`.

        Args:
            end: id of the token that follows the last one of a target.
        """
        ids, target = self.inputs["input_ids"], self.target
        following = torch.where(target, ids, NO_WORD).roll(-1, 1)
        following[:, -1] = NO_WORD
        ends = target & (torch.arange(ids.shape[1], device=ids.device) == self.layout.last[:, None])
        return following.masked_fill(ends, end)

    def select(self, rows: Tensor) -> "Batch":
        """Return the token ids of some rows, long [r], and what their positions are."""
        ids = {"input_ids": self.inputs["input_ids"][rows]}
        return Batch(ids, self.layout.select(rows), self.target[rows], self.labels[rows])

    @property
    def size(self) -> int:
        """Number of rows."""
        return int(self.inputs["input_ids"].shape[0])


def last_real_index(attention_mask: Tensor) -> Tensor:
    """Return the index of the last real token of each row, long [b]."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.where(attention_mask.bool(), positions, -1).amax(1)


def positions_of(tokens: Sequence[int], input_ids: Tensor) -> Tensor:
    """Return where some tokens stand in rows of token ids, bool of the rows' shape.

    Args:
        tokens: at least one id.
        input_ids: the rows.
    """
    return functools.reduce(operator.or_, (input_ids == token for token in tokens))


def input_device(model: nn.Module) -> torch.device:
    """Return the device on which a model takes its inputs."""
    first = next(model.parameters())
    if not first.is_meta:
        return first.device
    # accelerate keeps offloaded weights as meta tensors between the calls of their module.
    for module in model.modules():
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return first.device
