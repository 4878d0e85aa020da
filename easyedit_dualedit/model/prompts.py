"""Prompts as the chat template writes them and the processor reads them, pictures included."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.errors import BackboneError, DataError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import Query, open_image, picture_key, positions_of
from easyedit_dualedit.model.pictures import Picture
from easyedit_dualedit.model.video_frames import Clip, Clips

PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
"""Model inputs that are one number a token."""


class PromptReader:
    """Reads the prompts of queries for one model, without their answers."""

    def __init__(
        self,
        backbone: Backbone,
        processor: Any,
        template: str | None,
        open_picture: Callable[[Picture], Image.Image],
    ):
        """Keep what reading needs.

        Args:
            backbone: parts of the model.
            processor: the model's.
            template: chat template to use instead of the processor's own; None for that.
            open_picture: gives a picture as RGB.
        """
        self._backbone = backbone
        self._processor = processor
        self._template = template
        self._tokenizer = processor.tokenizer
        self._vision_ids = ids = backbone.vision_token_ids
        video_processor = getattr(processor, "video_processor", None)
        self._open_picture = open_picture
        self._clips = None if video_processor is None else Clips(video_processor)
        tokens: list[str | None] = self._tokenizer.convert_ids_to_tokens(ids)
        self._vision_tokens = [token for token in tokens if token is not None]
        if len(self._vision_tokens) < len(ids):
            raise BackboneError(
                f"image_token_id = {ids[tokens.index(None)]}: the tokenizer has no such token"
                f" ({len(self._tokenizer)} tokens); give one that the processor puts where a"
                " picture is, or leave it out"
            )

    def text(self, query: Query) -> str:
        """Return the prompt as the chat template writes it, ready for an answer."""
        content: list[dict[str, str]] = [{"type": "image"} for _ in query.pictures]
        if query.video is not None:
            content.append({"type": "video"})
        content.append({"type": "text", "text": query.prompt})
        return written_prompt(self._processor, content, self._template)

    def read(self, queries: Sequence[Query]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return the tokens of each prompt, unpadded, and the inputs that hold what is shown.

        Raises:
            DataError: if a picture or video is bad, or the processor refuses it.
            BackboneError: if the processor does not put vision tokens where something is shown.
        """
        self._require_readable(queries)
        rows: dict[int, dict[str, Tensor]] = {}
        seeing = [place for place, query in enumerate(queries) if query.pictures]
        watching = [place for place, query in enumerate(queries) if query.video is not None]
        blind = [place for place, query in enumerate(queries) if not query.shown]
        # Apart, since some processors refuse text alone, and some give every row a picture.
        parts = self._seen(queries, [seeing] if seeing else [], rows)
        # Each video alone: processors lay several into one tensor, as if all were of one length.
        watched = self._seen(queries, [[place] for place in watching], rows)
        if parts and watched and not parts[0].keys().isdisjoint(watched[0]):
            # Pictures and frames share an input, which holds them in the order of the rows.
            parts = self._seen(queries, [[place] for place in sorted(seeing + watching)], rows)
        else:
            parts += watched
        others = self._joined(parts)
        if blind:
            texts = [self.text(queries[place]) for place in blind]
            encoded = self._tokenizer(
                texts, padding=True, return_tensors="pt", **self._special_tokens(texts)
            )
            rows |= dict(zip(blind, _unpadded(encoded), strict=True))
        if self._backbone.family.needs_picture and not others:
            blank = [[Image.new("RGB", (32, 32))]]
            encoded = self._processed([self.text(Query(".", blank[0][0]))], images=blank)
            others = _not_per_token(encoded)
        names = {name for row in rows.values() for name in row}
        if self._backbone.family.answer_token_type:
            names.add("token_type_ids")
        for row in rows.values():
            for name in names - set(row):
                row[name] = torch.zeros_like(row["input_ids"])
        return [
            {name: rows[place][name] for name in PER_TOKEN if name in names}
            for place in range(len(queries))
        ], others

    def _seen(
        self,
        queries: Sequence[Query],
        groups: Sequence[Sequence[int]],
        rows: dict[int, dict[str, Tensor]],
    ) -> list[dict[str, Tensor]]:
        """Return what the processor makes of each group of queries; their tokens go to `rows`."""
        parts = []
        for places in groups:
            shown = [queries[place] for place in places]
            texts = [self.text(query) for query in shown]
            if shown[0].video is None:
                images = [[self._open_picture(one) for one in query.pictures] for query in shown]
                encoded = self._processed(texts, images=images)
            else:
                encoded = self._processed(texts, clip=self.clip_of(shown[0]))
            rows |= dict(zip(places, _unpadded(encoded), strict=True))
            self._require_vision([rows[place] for place in places], shown)
            parts.append(_not_per_token(encoded))
        return parts

    def clip_of(self, query: Query) -> Clip:
        """Return the frames that the model is shown of a query's video.

        Raises:
            DataError: if it shows none, it cannot be read, or the model takes none.
        """
        video = query.video
        if video is None or self._clips is None:
            raise DataError(
                f"{type(self._processor).__name__} reads no video, so"
                f" {type(self._backbone.model).__name__} takes none; give its frames as several"
                " pictures, if the model takes those, or use a model of a family that watches"
                " videos"
            )
        return self._clips.of(video)

    def _processed(
        self,
        texts: list[str],
        *,
        images: list[list[Image.Image]] | None = None,
        clip: Clip | None = None,
    ) -> dict[str, Tensor]:
        shown = {"images": images} if clip is None else clip.arguments
        try:
            encoded: dict[str, Tensor] = self._processor(
                text=texts,
                padding=True,
                return_tensors="pt",
                **shown,
                **self._special_tokens(texts),
            )
        except (ValueError, TypeError, IndexError) as error:
            name, line = type(self._processor).__name__, " ".join(str(error).split())
            if clip is not None:
                raise DataError(
                    f"{name} cannot read a video of shape {list(clip.pixels.shape)}: {line}"
                ) from error
            counts = sorted({len(group) for group in images or []})
            raise DataError(f"{name} cannot read {counts} pictures a query: {line}") from error
        return encoded

    def _joined(self, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the inputs of several calls of the processor as one call would give them."""
        names = dict.fromkeys(name for part in parts for name in part)
        held = {name: [part[name] for part in parts if name in part] for name in names}
        clips = held.get("pixel_values_videos", [])
        lengths = sorted({value.shape[1] for value in clips if value.dim() == 5})
        if len(lengths) > 1:
            raise DataError(
                f"videos of {' and '.join(map(str, lengths))} frames in one batch, but"
                f" {type(self._backbone.model).__name__} takes videos of one length at a time; give"
                " all the same count, the frames to show, or ask in batches of one"
            )
        return {name: _stacked(values) for name, values in held.items()}

    def _special_tokens(self, texts: Sequence[str]) -> dict[str, bool]:
        # A template that writes BOS itself would get another from the tokenizer.
        bos = self._tokenizer.bos_token
        return {"add_special_tokens": not (bos and all(text.startswith(bos) for text in texts))}

    def _require_readable(self, queries: Sequence[Query]) -> None:
        most = self._backbone.family.most_pictures
        for query in queries:
            if most is not None and len(query.pictures) > most:
                raise DataError(
                    f"{len(query.pictures)} pictures in one query, but"
                    f" {type(self._backbone.model).__name__} takes {most}; give {most}"
                )
            for token in self._vision_tokens:
                if token in query.prompt:
                    raise DataError(
                        f"prompt = {query.prompt!r} holds {token!r}, which stands for a picture;"
                        " leave it out, the chat template puts it where it belongs"
                    )

    def _require_vision(self, rows: Sequence[dict[str, Tensor]], queries: Sequence[Query]) -> None:
        for row, query in zip(rows, queries, strict=True):
            count = int(positions_of(self._vision_ids, row["input_ids"]).sum())
            if query.video is not None and not count:
                raise BackboneError(
                    f"{type(self._processor).__name__} puts no vision token (ids"
                    f" {self._vision_ids}) into a prompt with a video; use a chat"
                    " template that writes parts of type video"
                )
            # One token a picture may be all that a small one takes.
            if count < len(query.pictures) or (
                query.pictures and count == len(query.pictures) and not self._expands_pictures
            ):
                raise BackboneError(
                    f"{type(self._processor).__name__} puts {count} image tokens (id"
                    f" {self._backbone.image_token_id}) into a prompt with {len(query.pictures)}"
                    " pictures, so it does not say which positions are vision; use a model whose"
                    " processor expands the image token, or give the right id in YAML: backbone:"
                    " {image_token_id: <id>}"
                )

    @cached_property
    def _expands_pictures(self) -> bool:
        """Whether a large picture takes more than one position."""
        large = Image.new("RGB", (448, 448))
        text = self.text(Query(".", large))
        ids = self._processed([text], images=[[large]])["input_ids"]
        return int(positions_of(self._vision_ids, ids).sum()) > 1


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


def _unpadded(encoded: Any) -> list[dict[str, Tensor]]:
    real = encoded["attention_mask"].bool()
    names = [name for name in PER_TOKEN if name in encoded]
    return [{name: encoded[name][row][mask] for name in names} for row, mask in enumerate(real)]


def _not_per_token(encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    others = {n: v for n, v in encoded.items() if n not in (*PER_TOKEN, "labels")}
    return {name: torch.as_tensor(value) for name, value in others.items()}


def _stacked(values: Sequence[Tensor]) -> Tensor:
    """Return tensors one after the other, zeros behind those that are smaller."""
    if len(values) == 1:
        return values[0]
    sizes = [max(each) for each in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = [
        functional.pad(
            value,
            [
                side
                for have, size in reversed(list(zip(value.shape[1:], sizes, strict=True)))
                for side in (0, size - have)
            ],
        )
        for value in values
    ]
    return torch.cat(padded)


class OpenedPictures:
    """Decodes each file once for as long as its picture fits into a budget of memory."""

    def __init__(self, budget: int = 2**27):
        """Keep at most `budget` bytes of decoded pictures; by default a batch of photographs."""
        self._budget = budget
        self._size = 0
        self._held: OrderedDict[Hashable, Image.Image] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type["OpenedPictures"], tuple[int]]:
        """Return how to copy or pickle: without what is held."""
        return OpenedPictures, (self._budget,)

    def open(self, picture: Picture) -> Image.Image:
        """Return a picture as RGB, upright; nobody may change it.

        Raises:
            DataError: if the file is missing, truncated or no picture.
        """
        if isinstance(picture, Image.Image):
            return open_image(picture)
        key = picture_key(picture)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        opened = open_image(picture)
        self.keep(picture, opened)
        return opened

    def keep(self, picture: Picture, opened: Image.Image) -> None:
        """Keep what somebody else has decoded of a file."""
        key, size = picture_key(picture), _bytes_of(opened)
        with self._lock:
            if key in self._held or size > self._budget:
                return
            while self._size + size > self._budget:
                self._size -= _bytes_of(self._held.popitem(last=False)[1])
            self._held[key] = opened
            self._size += size


def _bytes_of(picture: Image.Image) -> int:
    return picture.width * picture.height * 3
