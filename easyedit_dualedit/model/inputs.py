"""What goes into a model: queries, batches of token rows, and the arguments of a call.

A `Query` is what a user asks, a `TokenLayout` says which position of a row of tokens is what, a
`Batch` holds the rows of several queries. The functions at the end read the same things from the
arguments of a call that somebody else has made.
"""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError, DataError, PromptEndError
from easyedit_dualedit.model.pictures import Picture, PictureLike, picture_of

IGNORED = -100
"""Label of a position that carries no loss, as in transformers."""

NO_WORD = -1
"""Stands for a token id at positions that no answer token follows."""


@dataclass(frozen=True)
class Query:
    """One question to a model: text, maybe pictures, maybe the answer that it should have.

    Raises:
        DataError: if the prompt is empty, a target is given and is empty, or something that is no
            picture stands for one.
    """

    prompt: str
    image: PictureLike | Sequence[PictureLike] | None = None
    """A picture in any form of `picture_of`, or several for models that take them; they come
    before the text. Kept as PIL pictures and paths."""
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
        if isinstance(self.image, list | tuple):
            several = tuple(picture_of(picture) for picture in self.image)
            # One picture in a list is that picture, as transformers has it.
            image = several[0] if len(several) == 1 else several or None
        else:
            one: Any = self.image
            image = None if one is None else picture_of(one)
        object.__setattr__(self, "image", image)


@dataclass(frozen=True)
class TokenLayout:
    """Which position of each row is what. Masks are True where the name applies."""

    vision: Tensor
    """Image tokens, bool [b, s]."""
    text: Tensor
    """Prompt text that the text adapter may change, bool [b, s]: never target or padding."""
    answered: Tensor
    """Tokens that follow the prompt, counted up to and with each position, long [b, s]; 0 in the
    prompt."""
    gate: Tensor
    """Index of the last prompt token, long [b]."""
    last: Tensor
    """Index of the last real token, target included, long [b]."""
    real: Tensor
    """Everything but padding, bool [b, s]."""

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
        answered = (real & (positions > gate[:, None])).cumsum(1)
        return cls(vision, text, answered, gate, last_real_index(real), real)

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
        return cls(~real, ~real, places, gate, last, real)

    @property
    def answer(self) -> Tensor:
        """Tokens that follow the prompt, bool [b, s]."""
        return self.real & (self.answered > 0)

    def to(self, device: torch.device) -> "TokenLayout":
        """Return the layout on a device."""
        moved = (getattr(self, field.name).to(device) for field in dataclasses.fields(self))
        return TokenLayout(*moved)

    def without_prompt_end(self) -> "TokenLayout":
        """Return the layout with the last prompt token no longer counted as prompt text."""
        positions = torch.arange(self.text.shape[1], device=self.text.device)
        return dataclasses.replace(self, text=self.text & (positions != self.gate[:, None]))

    def select(self, rows: Tensor) -> "TokenLayout":
        """Return the layout of some rows, long [r]."""
        return TokenLayout(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def repeated(self, times: int) -> "TokenLayout":
        """Return the layout of rows that are repeated in place, as beam search does."""
        fields = dataclasses.fields(self)
        return TokenLayout(*(getattr(self, f.name).repeat_interleave(times, 0) for f in fields))


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


def written_prompt(
    processor: Any, content: Sequence[Mapping[str, str]], template: str | None
) -> str:
    """Return what a chat template makes of a question, ready for an answer.

    Args:
        processor: of the model; its own template is used where none is given.
        content: the parts of the question, as transformers has them.
        template: Jinja text to use instead.

    Raises:
        BackboneError: if the template fails, or knows no questions in parts.
    """
    name = f"the chat template of {type(processor).__name__}"
    remedy = (
        "; set chat_template to one that takes a list of parts, each with a type, or give its"
        " Jinja text in YAML: backbone: {chat_template: ...}"
    )
    given = {} if template is None else {"chat_template": template}
    try:
        text: str = processor.apply_chat_template(
            [{"role": "user", "content": list(content)}],
            add_generation_prompt=True,
            tokenize=False,
            **given,
        )
    # Jinja raises errors of its own, and whatever the operations of a template raise.
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"{name} cannot write a question ({type(error).__name__}: {line}){remedy}"
        ) from error
    if "{'type': " in text and not any("{'type': " in part.get("text", "") for part in content):
        raise BackboneError(f"{name} takes only text as the content of a message{remedy}")
    return text


def last_real_index(attention_mask: Tensor) -> Tensor:
    """Return the index of the last real token of each row, long [b]."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return torch.where(attention_mask.bool(), positions, -1).amax(1)


def answer_mask(attention_mask: Tensor, lengths: Tensor) -> Tensor:
    """Return which tokens are among so many real ones at the end of each row, bool [b, s].

    Args:
        attention_mask: True (or 1) where a token is real, [b, s].
        lengths: how many, long [b].
    """
    positions = torch.arange(attention_mask.shape[1])
    last = last_real_index(attention_mask)[:, None]
    return (positions <= last) & (positions > last - lengths[:, None])


def named_arguments(model: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional arguments of a model's forward by their names."""
    if not args:
        return {}  # as transformers calls its models; reading a signature takes long
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind in kinds]
    if not names:
        names = ["input_ids"]  # a wrapper that hides the parameters of the model in it
    return dict(zip(names, args, strict=False))


def token_ids(inputs: Mapping[str, Any]) -> Tensor:
    """Return the token ids among a model's inputs.

    Raises:
        PromptEndError: if there are none.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptEndError(
            "an edited model needs input_ids, to tell image tokens from text; pass them, not"
            " inputs_embeds"
        )
    return ids


def real_tokens(inputs: Mapping[str, Any], prompt: Tensor | None = None) -> Tensor:
    """Return the mask of the real tokens among a model's inputs, [b, s]; all are if there is none.

    Args:
        inputs: of the model.
        prompt: mask that `generate` was given, [p, q], where rows may be repeated by now. With a
            static cache `generate` of transformers 5.5 puts one of four dimensions in its place.

    Raises:
        PromptEndError: if there are no token ids.
        DataError: if the mask says who attends to whom, and not which tokens are real.
    """
    ids, mask = token_ids(inputs), inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    if prompt is not None and prompt.dim() == 2:
        rows, width = ids.shape
        return widened(prompt, width, 1).repeat_interleave(rows // len(prompt), 0)
    raise DataError(
        "attention_mask says who attends to whom; an edited model needs to know which tokens are"
        " real: give one of two dimensions, 1 at real tokens and 0 at padding"
    )


def widened(rows: Tensor, width: int, filler: int) -> Tensor:
    """Return rows [b, s] cut to a width, or filled up to it at their ends, [b, width]."""
    missing = width - rows.shape[1]
    if missing <= 0:
        return rows[:, :width]
    return torch.cat([rows, rows.new_full((len(rows), missing), filler)], 1)


def cached_tokens(inputs: Mapping[str, Any]) -> int:
    """Return how many tokens the cache among a model's inputs holds; 0 without one."""
    cache = inputs.get("past_key_values")
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


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


def rows_and_width(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shape of a call's rows: their number, and their positions.

    Raises:
        PromptEndError: if there are neither token ids nor embeddings.
    """
    for name in ("inputs_embeds", "input_ids"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0]), int(value.shape[1])
    raise PromptEndError("a forward of generate has neither token ids nor embeddings")
