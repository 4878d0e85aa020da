"""Noise at the layers of one sample, and what it changes in the answer.

All layers of a sample share one forward: row 0 stays clean, and each layer adds its noised copies
of row 0 to the batch, so a copy costs only the layers above its noise.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import ConfigError, DataError
from easyedit_dualedit.model.answers import with_own_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import LayerEdit, attach
from easyedit_dualedit.model.inputs import IGNORED, Batch

Noised = Literal["vision", "text", "both"]
NOISED: tuple[Noised, ...] = ("vision", "text", "both")
"""Positions that get noise: image tokens; prompt text after them; both.

The last prompt token gets none: whatever its state is goes straight into the answer, so that noise
there tells nothing about what the layers above read.
"""

ATTENTION = ("vision", "text")
"""Positions whose share of the answer's attention is measured."""

_WIDEST_ATTENTION = 4096
"""Tokens of a row whose attention is asked for at most: all of its layers are kept, squared."""


@dataclass(frozen=True)
class LocateConfig:
    """How the layers are probed.

    Raises:
        ConfigError: if a value is not allowed.
    """

    layers: tuple[int, ...] | None = None
    """Decoder layers to probe; None is all."""
    noise: float = 3.0
    """Standard deviation of the noise, in those of the layer's states at the noised positions."""
    share: float = 0.1
    """A layer still counts as read from above if noise there changes the answer by at least this
    share of what it changes at the worst layer, 0 to 1."""
    draws: int = 4
    """Draws of the noise for each layer and modality."""
    rows: int = 96
    """Rows that a forward may hold: layers that do not fit go into another."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise > 0):
            raise ConfigError(f"noise = {self.noise}: the noise needs a scale above 0")
        if not 0 < self.share <= 1:
            raise ConfigError(f"share = {self.share}: a share above 0, at most 1")
        if self.draws < 1:
            raise ConfigError(f"draws = {self.draws}: at least 1")
        if self.rows <= self.draws * len(NOISED):
            raise ConfigError(
                f"rows = {self.rows}: one layer with {self.draws} draws takes"
                f" {1 + self.draws * len(NOISED)}; give more rows or fewer draws"
            )

    def chosen(self, count: int) -> tuple[int, ...]:
        """Return the layers to probe of a model with `count`.

        Raises:
            ConfigError: if one of them is not in the model.
        """
        layers = tuple(range(count)) if self.layers is None else tuple(sorted(set(self.layers)))
        outside = [layer for layer in layers if not 0 <= layer < count]
        if outside or not layers:
            missing = f"not {', '.join(map(str, outside))}" if outside else "name at least one"
            raise ConfigError(
                f"layers = {list(layers)}: the model has decoder layers 0-{count - 1}; {missing}"
            )
        return layers

    def passes(self, count: int) -> list[tuple[int, ...]]:
        """Return the layers that each forward of a sample probes."""
        layers = self.chosen(count)
        size = max(1, (self.rows - 1) // (self.draws * len(NOISED)))
        return [layers[start : start + size] for start in range(0, len(layers), size)]

    def cost(self, count: int) -> dict[str, int]:
        """Return rows times decoder layers for one sample: as it is done, and without sharing.

        Without sharing, each noised copy would run every layer.
        """
        copies = self.draws * len(NOISED)
        passes = self.passes(count)
        shared = sum(
            count + sum(copies * (count - 1 - layer) for layer in layers) for layers in passes
        )
        return {"shared": shared, "unshared": count + copies * count * len(self.chosen(count))}


@torch.no_grad()
def probe(record: Record, encoder: Encoder, config: LocateConfig) -> dict[str, Any]:
    """Return the effect of noise on the answer to one record's request.

    Returns:
        modality -> measure -> one value a layer, in the order of the layers; and the answer.

    Raises:
        DataError: if the record shows nothing, or an output is not a number.
    """
    if record.request.image is None:
        raise DataError(
            f"record {record.index} shows nothing; locate needs questions of pictures or videos"
        )
    (query,) = with_own_answers(encoder, [replace(record.request, target=None)])
    batch = encoder.encode([query])
    effects: dict[str, dict[str, list[float]]] = {
        modality: {"kl": [], "flips": []} for modality in NOISED
    }
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + record.index)
    for layers in config.passes(len(encoder.backbone.layers)):
        logits = _noised_logits(encoder, batch, layers, config, generator)
        if not bool(logits.isfinite().all()):
            raise DataError(
                f"record {record.index}: the model's output holds NaN or infinity; load it in"
                " another dtype, or mend the picture"
            )
        shape = (len(layers), len(NOISED), config.draws, *logits.shape[1:])
        plain, noised = logits[0], logits[1:].reshape(shape)
        kl = functional.kl_div(
            noised.log_softmax(-1), plain.log_softmax(-1), reduction="none", log_target=True
        )
        change = kl.sum(-1).mean((2, 3))  # [layers, modalities]
        flips = (noised.argmax(-1) != plain.argmax(-1)).any(-1).float().mean(2)
        for place, modality in enumerate(NOISED):
            effects[modality]["kl"] += change[:, place].tolist()
            effects[modality]["flips"] += flips[:, place].tolist()
    attention = _attention(encoder, batch, config)
    return {
        "answer": query.target,
        "prompt": query.prompt,
        "noise": effects,
        "attention": attention,
    }


def _noised_logits(
    encoder: Encoder,
    batch: Batch,
    layers: Sequence[int],
    config: LocateConfig,
    generator: torch.Generator,
) -> Tensor:
    """Return logits before each answer token, [1 + copies, t, v]: the clean row first."""
    layout = batch.layout
    vision, text = layout.vision[0], layout.text[0].clone()
    text[int(layout.gate[0])] = False

    def noise_at(hidden: Tensor) -> Tensor:
        clean = hidden[:1]  # [1, s, d]
        changes = []
        for mask in (vision, text):
            where = mask.to(hidden.device)
            scale = clean[0, where].float().std() * config.noise
            shape = (config.draws, *clean.shape[1:])
            # Drawn on the CPU, so that a seed means the same on every device.
            drawn = torch.randn(shape, generator=generator).to(hidden.device)
            changes.append((drawn * scale * where[:, None]).to(hidden.dtype))
        changes.append(changes[0] + changes[1])
        return torch.cat([hidden, *(clean + change for change in changes)])

    edits: dict[int, LayerEdit] = dict.fromkeys(layers, noise_at)
    with attach(encoder.backbone.layers, edits), _copies_see(encoder.backbone.decoder):
        logits = encoder.backbone.model(**batch.inputs, use_cache=False).logits
    before = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    answer: Tensor = logits[:, before].float()
    return answer


def _attention(
    encoder: Encoder, batch: Batch, config: LocateConfig
) -> dict[str, list[float]] | None:
    """Return the share of attention that the answer pays to each modality, by layer, 0 to 1.

    None if not every layer of the model tells its attention, or a video makes the row too wide.
    """
    model: Any = encoder.backbone.model
    if batch.layout.real.shape[1] > _WIDEST_ATTENTION:
        return None
    with _eager(model):
        output = model(**batch.inputs, use_cache=False, output_attentions=True)
    weights = getattr(output, "attentions", None)
    count = len(encoder.backbone.layers)  # linear attention has no weights to tell
    if not weights or len(weights) < count or any(each is None for each in weights):
        return None
    before = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    shares: dict[str, list[float]] = {}
    for part in ATTENTION:
        mask = getattr(batch.layout, part)[0]
        shares[part] = [
            float(weights[layer][0][:, before][..., mask].float().sum(-1).mean())
            for layer in config.chosen(count)
        ]
    return shares


@contextlib.contextmanager
def _copies_see(decoder: Any) -> Iterator[None]:
    """Let a decoder that adds picture features between its layers add them to every copy."""
    name = "_deepstack_process"
    real = getattr(decoder, name, None)
    if real is None:
        yield
        return

    def added(hidden: Tensor, mask: Tensor, features: Tensor) -> Tensor:
        copies = len(hidden) // len(mask)
        found: Tensor = real(hidden, mask.repeat(copies, 1), features.repeat(copies, 1))
        return found

    setattr(decoder, name, added)
    try:
        yield
    finally:
        delattr(decoder, name)


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    # Only the plain implementation keeps the weights of its attention.
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    before = [part._attn_implementation for part in parts]
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before[0])
        for part, implementation in zip(parts, before, strict=True):
            part._attn_implementation = implementation
