"""Teaches the vision tower and the projector to say the decoder's own words in reading order."""

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.testbed.emoji.architecture import STATE_SCALE
from easyedit_dualedit.testbed.emoji.drawing import (
    GRID,
    PAIR_SIZE,
    Drawings,
    Picture,
    draw_pair,
    draw_single,
    stack_pixels,
)
from easyedit_dualedit.testbed.emoji.patch_words import NO_COLUMN, PatchWords
from easyedit_dualedit.testbed.emoji.stage import Stage
from easyedit_dualedit.testbed.emoji.things import Thing

logger = logging.getLogger(__name__)

_MUON_RATE = 0.02
_TOWER_RATE = 1e-3
_PROJECTOR_RATE = 6e-4
_HEAD_RATE = 1.5e-3
_WARM_UP = 60
_LOGIT_SCALE = 20.0
_GROUND_WEIGHT = 0.5
_FLAG_WEIGHT = 1.6
_KEPT_OF_THINGS, _KEPT_OF_GROUND = 12, 3
_SECONDS_BETWEEN_LINES = 60.0


class PictureSource:
    """Draws pictures that the model may be trained on, flags more often than other things."""

    def __init__(self, things: Sequence[Thing], seed: int, single: float = 0.5) -> None:
        """Keep the things; ``single`` is the share of pictures of one thing."""
        self._names = [thing.name for thing in things]
        self._weights = [_FLAG_WEIGHT if thing.kind == "flag" else 1.0 for thing in things]
        self._single = single
        self.source = random.Random(seed)

    def draw(self, count: int, *, unseen: bool = False) -> list[Picture]:
        """Return new pictures; with ``unseen``, only such as are never trained on."""
        return [self._draw(unseen) for _ in range(count)]

    def _draw(self, unseen: bool) -> Picture:
        if self.source.random() < self._single:
            (name,) = self.source.choices(self._names, self._weights)
            return draw_single(name, self.source, unseen=unseen)
        left, right = self.source.choices(self._names, self._weights, k=2)
        return draw_pair(left, right, self.source, unseen=unseen)


@dataclass(frozen=True)
class TowerPlan:
    """How long the tower is trained.

    Attributes:
        steps: of the first part, in which a picture's patches are mostly left out: 12 of those
            that things cover and 3 others are enough to know a thing by, for half the cost.
        whole_steps: of the second part, with all 36 patches; only here can a patch learn which
            column of its thing it is, which the left edge tells.
        batch: pictures a step.
    """

    steps: int = 3000
    whole_steps: int = 1200
    batch: int = 128


def train_tower(
    model: Any,
    words: PatchWords,
    drawings: Drawings,
    things: Sequence[Thing],
    plan: TowerPlan,
    folder: Path,
    seed: int,
    *,
    fresh: bool = True,
) -> dict[str, float]:
    """Train tower and projector in place; return shares of right patches on unseen pictures.

    Args:
        model: the whole model; its decoder is not touched.
        words: what patches are to say.
        drawings: of all things.
        things: to draw.
        plan: how long.
        folder: of the stages' files, from which an interrupted training goes on.
        seed: of pictures and of the heads that are thrown away.
        fresh: the projector is random; otherwise it was trained before and reads raw states.
    """
    torch.manual_seed(seed)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    heads = nn.Linear(
        tower.config.hidden_size, len(words.names) + 1 + len(words.tokens) + NO_COLUMN + 1
    )
    with torch.no_grad():
        if fresh:
            projector.linear_2.bias.copy_(words.embeddings.mean(0))
        else:
            projector.linear_1.weight *= STATE_SCALE
    lesson = _Lesson(tower, projector, heads, words, drawings)
    for name, steps, whole in (("patches", plan.steps, False), ("whole", plan.whole_steps, True)):
        source = PictureSource(things, seed + whole, single=0.7 if whole else 0.5)
        _run(lesson, source, folder / f"tower-{name}.pt", steps, plan.batch, whole, seed)
    reached = lesson.measure(PictureSource(things, seed + 99, 1.0).draw(256, unseen=True))
    pairs = lesson.measure(PictureSource(things, seed + 99, 0.0).draw(256, unseen=True))
    fold_scale(projector)
    return {f"{n} single": v for n, v in reached.items()} | {
        f"{n} pair": v for n, v in pairs.items()
    }


@torch.no_grad()
def fold_scale(projector: Any) -> None:
    """Move the division of the tower's states into the projector, which then reads raw ones."""
    projector.linear_1.weight /= STATE_SCALE


class _Lesson:
    def __init__(
        self, tower: Any, projector: Any, heads: nn.Linear, words: PatchWords, drawings: Drawings
    ) -> None:
        self.tower, self.projector, self.heads = tower, projector, heads
        self.words, self.drawings = words, drawings
        self._centre = words.embeddings.mean(0)
        self._directions = functional.normalize(words.embeddings - self._centre, dim=1)

    def look(self, pictures: Sequence[Picture], keep: Tensor | None) -> list[Tensor]:
        """Return words, and what the heads say of things, tokens and columns, by patch."""
        pixels = torch.from_numpy(stack_pixels(self.drawings, pictures)).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            states = patch_states(self.tower, pixels, keep) / STATE_SCALE
            said = self.projector(states)
            named = self.heads(states)
        sizes = [len(self.words.names) + 1, len(self.words.tokens), NO_COLUMN + 1]
        return [said.float(), *named.float().split(sizes, -1)]

    def loss(self, pictures: Sequence[Picture], keep: Tensor | None) -> Tensor:
        tokens, things, columns = (_kept(each, keep) for each in self.words.of(pictures))
        said, of_things, of_tokens, of_columns = self.look(pictures, keep)
        weights = torch.where(things < len(self.words.names), 1.0, _GROUND_WEIGHT)
        weights = weights / weights.sum()
        wanted = self.words.embeddings[tokens]
        distance = (said - wanted).square().sum(-1) / wanted.square().sum(-1)
        losses = (
            _entropy(self._logits(said), tokens)
            + 2 * distance
            + _entropy(of_things, things)
            + _entropy(of_tokens, tokens)
            + _entropy(of_columns, columns)
        )
        return (losses * weights).sum()

    @torch.no_grad()
    def measure(self, pictures: Sequence[Picture]) -> dict[str, float]:
        tokens, things, _ = self.words.of(pictures)
        said, of_things, _, _ = self.look(pictures, None)
        covered = things < len(self.words.names)
        right = {
            "thing": (of_things.argmax(-1) == things)[covered],
            "token": (self._logits(said).argmax(-1) == tokens)[covered],
            "background": (self._logits(said).argmax(-1) == tokens)[~covered],
        }
        return {name: float(each.float().mean()) for name, each in right.items()}

    def _logits(self, said: Tensor) -> Tensor:
        # Compared without what all tokens share, which would drown what they differ in.
        directions = functional.normalize(said - self._centre, dim=-1)
        return directions @ self._directions.T * _LOGIT_SCALE


def patch_states(tower: Any, pixels: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the states [n, p, width] that the projector reads.

    Args:
        tower: the vision tower.
        pixels: pictures [n, 3, 96, 96] in -1..1.
        keep: numbers of the patches that are looked at [n, p]; all with None.
    """
    inner = getattr(tower, "vision_model", tower)
    states = inner.embeddings(pixels)
    if keep is not None:
        states = states.gather(1, keep[..., None].expand(-1, -1, states.shape[-1]))
    for layer in inner.encoder.layers:
        found = layer(states, attention_mask=None)
        states = found[0] if isinstance(found, tuple) else found
    return states  # type: ignore[no-any-return]


def choose_patches(things: Tensor, none: int, generator: torch.Generator) -> Tensor:
    """Return which patches to keep [n, 15]: 12 that things cover, of two things 6 each.

    Args:
        things: what each patch shows [n, 36].
        none: number in ``things`` that stands for the background.
        generator: of chance.
    """
    chance = torch.rand(things.shape, generator=generator)
    covered = things != none
    right = torch.arange(GRID * GRID) % GRID >= PAIR_SIZE
    ground = torch.where(covered, -1.0, chance).topk(_KEPT_OF_GROUND, 1).indices
    anywhere = torch.where(covered, chance, -1.0).topk(_KEPT_OF_THINGS, 1).indices
    sides = [
        torch.where(covered & side, chance, -1.0).topk(_KEPT_OF_THINGS // 2, 1).indices
        for side in (~right, right)
    ]
    # Two things cover exactly 18 patches, one thing 16 or 25.
    pairs = (covered.sum(1) == 2 * PAIR_SIZE**2)[:, None]
    return torch.cat([torch.where(pairs, torch.cat(sides, 1), anywhere), ground], 1)


def _run(
    lesson: _Lesson,
    source: PictureSource,
    file: Path,
    steps: int,
    batch: int,
    whole: bool,
    seed: int,
) -> None:
    inner = getattr(lesson.tower, "vision_model", lesson.tower)
    hidden = [each for each in inner.encoder.parameters() if each.ndim == 2]
    known = {id(each) for each in hidden}
    others = [each for each in lesson.tower.parameters() if id(each) not in known]
    # With it the tower names .57 of all things after 530 steps; AdamW had not left chance by then.
    muon = torch.optim.Muon(hidden, lr=_MUON_RATE, weight_decay=0.01)
    adam = torch.optim.AdamW(
        [
            {"params": others, "lr": _TOWER_RATE},
            {"params": list(lesson.projector.parameters()), "lr": _PROJECTOR_RATE},
            {"params": list(lesson.heads.parameters()), "lr": _HEAD_RATE},
        ],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    peaks = [(group, group["lr"]) for each in (muon, adam) for group in each.param_groups]
    stage = Stage(
        file,
        steps,
        tower=lesson.tower,
        projector=lesson.projector,
        heads=lesson.heads,
        muon=muon,
        adam=adam,
    )
    source.source.seed(f"{seed} {stage.step}")
    generator = torch.Generator().manual_seed(seed + stage.step)
    reported = time.monotonic()
    lesson.tower.train()
    while not stage.is_done:
        # The second part begins where the first one's rate was at its last quarter.
        share = stage.step / steps if not whole else 0.65 + 0.35 * stage.step / steps
        factor = min(1.0, (stage.step + 1) / _WARM_UP) * (0.02 + 0.49 * (1 + _cosine(share)))
        for group, peak in peaks:
            group["lr"] = peak * factor
        pictures = source.draw(batch)
        keep = None
        if not whole:
            things = lesson.words.of(pictures)[1]
            keep = choose_patches(things, len(lesson.words.names), generator)
        loss = lesson.loss(pictures, keep)
        for each in (muon, adam):
            each.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_([*others, *lesson.projector.parameters()], 1.0)
        muon.step()  # type: ignore[no-untyped-call]
        adam.step()
        stage.advance()
        if time.monotonic() - reported > _SECONDS_BETWEEN_LINES or stage.is_done:
            reported = time.monotonic()
            shares = lesson.measure(source.draw(64, unseen=True))
            line = ", ".join(f"{name} {value:.3f}" for name, value in shares.items())
            logger.info("%s step %d: loss %.3f, %s", file.stem, stage.step, loss.item(), line)
    lesson.tower.eval()


def _cosine(share: float) -> float:
    return math.cos(math.pi * min(1.0, share))


def _entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(
        wanted.shape
    )


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else values.gather(1, keep)
