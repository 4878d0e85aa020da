"""Where a model looks while it answers: its attention over the places of a picture.

Of one forward of question and answer, the attention that the positions before the answer's tokens
pay to the image tokens is averaged over them, over heads and over layers. That tells what is read,
and not what the answer rests on.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Query

logger = logging.getLogger(__name__)

_GIVES_WEIGHTS = "eager"
"""The only way in which transformers computes attention so that its weights can be seen."""

_BASE_FIRST = ("llava_next", "llava_onevision")
"""Families that show the whole picture first, and then parts of it."""

NO_WEIGHTS = "This model does not tell what it attends to."
NO_PLACES = "This model's image tokens have no known places in the picture."

_HEAT = (230, 60, 20)
_SHOWN_SIDE = 384


@dataclass(frozen=True)
class AttentionMap:
    """Attention over the places of a picture.

    Shapes: r rows and c columns of image tokens.
    """

    grid: Tensor
    """Share of all attention to the picture that each place has, float [r, c]; sums to 1."""
    share: float
    """Of the answer's attention, how much goes to the picture at all; the rest goes to text."""
    is_cropped: bool = False
    """Whether the model sees the square in the middle of the picture alone."""

    @classmethod
    def of(cls, encoder: Encoder, model: Any, query: Query, answer: str) -> "AttentionMap | str":
        """Return where a model looks while it gives an answer; or in a line why that is not known.

        Args:
            encoder: of the model.
            model: unedited or edited.
            query: the question, with one picture.
            answer: what the model has answered.

        Raises:
            DataError: if the picture cannot be read.
        """
        if len(query.pictures) != 1:
            return "The question shows no picture."
        if not answer.strip():
            return "The model has said nothing."
        batch = encoder.encode([Query(query.prompt, query.image, answer)])
        vision, writing = batch.layout.vision[0], batch.target[0].roll(-1)
        options: dict[str, Any] = {"output_attentions": True, "use_cache": False}
        if model is not encoder.backbone.model:
            options["layout"] = batch.layout
        with undisturbed(encoder.backbone.model), _weights_given(encoder.backbone.model) as given:
            if not given:
                return NO_WEIGHTS
            with torch.no_grad():
                made = model(**batch.inputs, **options)
        layers = [each for each in getattr(made, "attentions", None) or () if each is not None]
        fitting = [each for each in layers if each.shape[-1] == len(vision)]
        if not fitting:
            return NO_WEIGHTS
        device = fitting[0].device
        mean = torch.stack([each[0].float().to(device).mean(0) for each in fitting]).mean(0)
        shares = mean[writing.to(device)][:, vision.to(device)].mean(0).cpu()
        grid = _grid_of(shares, encoder, batch.inputs)
        if grid is None or not bool(grid.isfinite().all()) or float(grid.sum()) <= 0:
            return NO_PLACES
        reader = getattr(encoder.processor, "image_processor", None)
        is_cropped = bool(getattr(reader, "do_center_crop", False))
        return cls(grid / grid.sum(), float(shares.sum()), is_cropped)

    @property
    def place(self) -> tuple[int, int]:
        """Row and column, from 0, of the place that is looked at most."""
        row, column = divmod(int(self.grid.argmax()), self.grid.shape[1])
        return row, column

    def told(self) -> str:
        """Return in words where it looks, for those who do not see the picture."""
        row, column = self.place
        rows, columns = self.grid.shape
        return (
            f"looked at most: row {row + 1} of {rows}, column {column + 1} of {columns};"
            f" {self.share:.0%} of the attention goes to the picture"
        )

    def over(self, picture: Image.Image) -> Image.Image:
        """Return a picture with the attention laid over it: clear for the least, red the most."""
        scale = _SHOWN_SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # Small pictures are enlarged in squares: what the model sees is no smoother.
        shown = picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 2 else None)
        least, most = self.grid.min(), self.grid.max()
        scaled = (self.grid - least) / (most - least).clamp(min=1e-9) if most > least else self.grid
        strength = (scaled * 180).round().to(torch.uint8).numpy()
        seen = (min(size), min(size)) if self.is_cropped else size
        mask = Image.new("L", size)
        corner = ((size[0] - seen[0]) // 2, (size[1] - seen[1]) // 2)
        mask.paste(Image.fromarray(strength).resize(seen, Image.Resampling.NEAREST), corner)
        grey = shown.convert("L").convert("RGB")
        muted = Image.blend(shown, grey, 0.35)
        return Image.composite(Image.new("RGB", size, _HEAT), muted, mask)


@contextmanager
def _weights_given(model: Any) -> Iterator[bool]:
    """Have a model give its attention weights for a while; yield whether it can."""
    text = model.config.get_text_config()
    before = getattr(text, "_attn_implementation", None)
    if before == _GIVES_WEIGHTS:
        yield True
        return
    language = getattr(getattr(model, "model", model), "language_model", model)
    change = getattr(language, "set_attn_implementation", None)
    if change is None or before is None:
        yield False
        return
    try:
        change(_GIVES_WEIGHTS)
    except Exception as error:  # families say in their own ways that they cannot
        logger.info("no attention weights: %s", error)
        yield False
        return
    try:
        yield True
    finally:
        change(before)


def _grid_of(shares: Tensor, encoder: Encoder, inputs: dict[str, Tensor]) -> Tensor | None:
    """Return the shares of image tokens by their places, [r, c]; None if these are not known."""
    config: Any = encoder.backbone.model.config
    vision: Any = getattr(config, "vision_config", None)
    count = len(shares)
    sizes = inputs.get("image_grid_thw")
    if sizes is not None and len(sizes) == 1:
        merged = int(getattr(vision, "spatial_merge_size", 1))
        rows, columns = (int(side) // merged for side in sizes[0][1:])
        return shares.view(rows, columns) if rows * columns == count else None
    side = math.isqrt(count)
    if config.model_type in _BASE_FIRST:
        side = int(vision.image_size) // int(vision.patch_size)
        if count < side * side:
            return None
        grid = shares[: side * side].view(side, side)
        if count == side * (2 * side + 1):  # one part as large as the whole, each row with an end
            grid = grid + shares[side * side :].view(side, side + 1)[:, :-1]
        return grid
    # Pictures cut into parts have as many rows of pixels, before the last three dimensions.
    parts = inputs["pixel_values"].shape[:-3].numel() if "pixel_values" in inputs else 0
    # The query tokens of BLIP-2 and its kin stand for the whole picture, each of them.
    has_places = parts == 1 and not hasattr(config, "qformer_config")
    return shares.view(side, side) if has_places and side * side == count and side > 1 else None
