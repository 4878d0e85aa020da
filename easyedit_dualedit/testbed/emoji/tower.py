"""Teaches the layers of the vision tower below its last to tell things, and places in names."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.testbed.emoji.drawing import (
    GRID,
    PAIR_SIZE,
    Drawings,
    Picture,
    stack_pixels,
)
from easyedit_dualedit.testbed.emoji.patch_states import patch_states, unit_states
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.picture_source import PictureSource
from easyedit_dualedit.testbed.emoji.stage import Stage
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.emoji.word_memory import MemoryPlan, WordMemory, teach_memory

logger = logging.getLogger(__name__)

_MUON_RATE = 0.02
_TOWER_RATE = 1e-3
_HEAD_RATE = 3e-3
_WARM_UP = 60
_COVERED_SHARE, _GROUND_SHARE = 0.6, 0.12
_KEPT_OF_THINGS, _KEPT_OF_GROUND = 12, 3
_SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class TowerPlan:
    """How long the tower is trained.

    Attributes:
        steps: of the first part, in which a picture's patches are mostly left out: 12 of those
            that things cover and 3 others are enough to know a thing by, for half the cost.
        whole_steps: of the second part, with all 36 patches.
        batch: pictures a step.
        memory: how its last layer is made.
    """

    steps: int = 3000
    whole_steps: int = 800
    batch: int = 96
    memory: MemoryPlan = field(default_factory=MemoryPlan)


def train_tower(
    model: Any,
    words: PatchWords,
    drawings: Drawings,
    things: Sequence[Thing],
    plan: TowerPlan,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    """Train tower and projector in place; return shares of right patches on unseen pictures.

    The layers below the last learn to tell the entries of :class:`PatchWords` apart; the last
    layer and the projector then put the decoder's words in their place.

    Args:
        model: the whole model; its decoder is not touched.
        words: what patches are to say.
        drawings: of all things.
        things: to draw.
        plan: how long.
        folder: of the stages' files, from which an interrupted training goes on.
        seed: of pictures and of the heads that are thrown away.
    """
    torch.manual_seed(seed)
    tower = model.model.vision_tower
    lesson = TowerLesson(tower, words, drawings)
    for name, steps, whole in (("patches", plan.steps, False), ("whole", plan.whole_steps, True)):
        source = PictureSource(things, seed + whole, single=0.6 if whole else 0.5)
        _run(lesson, source, folder / f"tower-{name}.pt", steps, plan.batch, whole, seed)
    reached: dict[str, float] = {}
    for name, single in (("single", 1.0), ("pair", 0.0)):
        pictures = PictureSource(things, seed + 99, single).draw(256, unseen=True)
        reached |= {f"{key} {name}": value for key, value in lesson.measure(pictures).items()}
    source = PictureSource(things, seed + 2, single=0.6)
    memory = WordMemory(tower, model.model.multi_modal_projector, words, lesson.entries)
    said = teach_memory(memory, source, drawings, plan.memory, folder, seed)
    return reached | said


class TowerLesson:
    """What the layers below the last are taught by: classifiers of patches.

    Which entry a patch is follows from its thing and its place, but a tower that was asked for
    things and entries alone did not keep the place: after 3,800 steps a linear map of its states
    told columns apart in 25 of 100 patches, with six of them, and entries stayed at what a name
    gives away. So it is asked for the place, too.
    """

    def __init__(self, tower: Any, words: PatchWords, drawings: Drawings) -> None:
        """Begin with classifiers that know nothing."""
        width = tower.config.hidden_size
        self.tower, self.words, self.drawings = tower, words, drawings
        self.things = nn.Linear(width, len(words.names) + 1)
        self.entries = nn.Linear(width, len(words.token_of_entry))
        self.places = nn.Linear(width, GRID * GRID)

    def look(self, pictures: Sequence[Picture], keep: Tensor | None) -> Tensor:
        """Return the unit states [n, p, width] below the last layer."""
        pixels = torch.from_numpy(stack_pixels(self.drawings, pictures)).float() / 127.5 - 1.0
        with torch.autocast("cpu", torch.bfloat16):
            states = patch_states(self.tower, pixels, keep, below_last=True)
        return unit_states(states)

    def loss(
        self, pictures: Sequence[Picture], keep: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Return the loss of telling things, their patches' entries, and places apart."""
        entries, things = (_kept(each, keep) for each in self.words.of(pictures))
        places = _kept(torch.arange(GRID * GRID).expand(len(pictures), -1), keep)
        chance = torch.rand(things.shape, generator=generator)
        covered = things < len(self.words.names)
        asked = chance < torch.where(covered, _COVERED_SHARE, _GROUND_SHARE)
        states = self.look(pictures, keep)[asked]
        with torch.autocast("cpu", torch.bfloat16):
            said = self.things(states), self.entries(states), self.places(states)
        wanted = things[asked], entries[asked], places[asked]
        losses = map(functional.cross_entropy, (each.float() for each in said), wanted)
        return torch.stack(list(losses)).sum()

    @torch.no_grad()
    def measure(self, pictures: Sequence[Picture]) -> dict[str, float]:
        """Return the shares of patches that each classifier has right."""
        entries, things = self.words.of(pictures)
        states = self.look(pictures, None)
        covered = things < len(self.words.names)
        places = torch.arange(GRID * GRID).expand(len(pictures), -1)
        right = {
            "place": self.places(states).argmax(-1) == places,
            "thing": (self.things(states).argmax(-1) == things)[covered],
            "entry": (self.entries(states).argmax(-1) == entries)[covered],
            "background": (self.entries(states).argmax(-1) == entries)[~covered],
        }
        return {name: float(each.float().mean()) for name, each in right.items()}


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
    lesson: TowerLesson,
    source: PictureSource,
    file: Path,
    steps: int,
    batch: int,
    whole: bool,
    seed: int,
) -> None:
    inner = getattr(lesson.tower, "vision_model", lesson.tower)
    last = {id(each) for each in inner.encoder.layers[-1].parameters()}
    taught = [each for each in lesson.tower.parameters() if id(each) not in last]
    inside = {id(each) for each in inner.encoder.parameters()}
    hidden = [each for each in taught if each.ndim == 2 and id(each) in inside]
    known = {id(each) for each in hidden}
    others = [each for each in taught if id(each) not in known]
    classifiers = {"things": lesson.things, "entries": lesson.entries, "places": lesson.places}
    heads = [each for head in classifiers.values() for each in head.parameters()]
    # With it the tower names .57 of all things after 530 steps; AdamW had not left chance by then.
    muon = torch.optim.Muon(hidden, lr=_MUON_RATE, weight_decay=0.01)
    adam = torch.optim.AdamW(
        [{"params": others, "lr": _TOWER_RATE}, {"params": heads, "lr": _HEAD_RATE}],
        betas=(0.9, 0.98),
        weight_decay=0.01,
    )
    peaks = [(group, group["lr"]) for each in (muon, adam) for group in each.param_groups]
    stage = Stage(
        file,
        steps,
        tower=lesson.tower,
        **classifiers,
        muon=muon,
        adam=adam,
    )
    source.source.seed(f"{seed} {stage.step}")
    generator = torch.Generator().manual_seed(seed + stage.step)
    reported = time.monotonic()
    lesson.tower.train()
    while not stage.is_done:
        share = stage.step / steps
        factor = min(1.0, (stage.step + 1) / _WARM_UP) * (0.02 + 0.49 * (1 + _cosine(share)))
        for group, peak in peaks:
            group["lr"] = peak * factor
        pictures = source.draw(batch)
        keep = None
        if not whole:
            things = lesson.words.of(pictures)[1]
            keep = choose_patches(things, len(lesson.words.names), generator)
        loss = lesson.loss(pictures, keep, generator)
        for each in (muon, adam):
            each.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(others, 1.0)
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


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else values.gather(1, keep)
