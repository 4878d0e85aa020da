"""Teaches the vision tower to see: which shape and which colour is in each cell."""

import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from easyedit_dualedit.testbed.architecture import PATCHES
from easyedit_dualedit.testbed.picture import SIDE, render
from easyedit_dualedit.testbed.world import COLOURS, SHAPES, Scene, draw_scene

logger = logging.getLogger(__name__)

_BATCH = 128
_PEAK_RATE = 2e-3


@dataclass(frozen=True)
class Gallery:
    """Scenes of the training split and their pictures, uint8 [n, 3, 48, 48]."""

    scenes: tuple[Scene, ...]
    pixels: Tensor

    def normalised(self, rows: Tensor) -> Tensor:
        """Return some pictures as the processor would give them: float32 in -1..1."""
        return self.pixels[rows].float() / 127.5 - 1.0


def draw_gallery(count: int, seed: int) -> Gallery:
    """Return ``count`` random scenes, none of which belongs to the evaluation split."""
    source = random.Random(f"gallery {seed}")
    scenes = tuple(draw_scene(source, lambda scene: scene.split == "train") for _ in range(count))
    pixels = torch.empty(count, 3, SIDE, SIDE, dtype=torch.uint8)
    for row, scene in enumerate(tqdm(scenes, desc="pictures", unit="picture")):
        picture = np.array(render(scene, source.getrandbits(48)))
        pixels[row] = torch.from_numpy(picture).permute(2, 0, 1)
    return Gallery(scenes, pixels)


def train_vision(tower: Any, gallery: Gallery, steps: int, seed: int) -> float:
    """Train ``tower`` in place and freeze it; return its share of rightly named cells.

    A linear head on the hidden states that LLaVA-OneVision will read names the shape and the
    colour of every cell, or that it is empty, and the cell itself. Without the last, the tower
    forgets places, and a language model with relative positions cannot tell regions.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    labels = _cell_labels(gallery.scenes)
    width = tower.config.hidden_size
    classes = [len(SHAPES) + 1, len(COLOURS) + 1, PATCHES]
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(classes)))
    parameters = [*tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, _PEAK_RATE, total_steps=steps)
    recent: deque[float] = deque(maxlen=50)
    share = 0.0
    tower.train()
    for _ in (bar := tqdm(range(steps), desc="vision", unit="step", mininterval=2)):
        rows = torch.randint(len(gallery.scenes), (_BATCH,), generator=generator)
        named = head(see(tower, gallery.normalised(rows)))
        parts = torch.split(named, classes, dim=-1)
        wanted = labels[rows]
        losses = [
            nn.functional.cross_entropy(part.flatten(0, 1), wanted[..., kind].flatten())
            for kind, part in enumerate(parts)
        ]
        loss = torch.stack(losses).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        right = torch.stack([part.argmax(-1) for part in parts], dim=-1) == wanted
        recent.append(right.all(dim=-1).float().mean().item())
        share = sum(recent) / len(recent)
        bar.set_postfix(loss=f"{loss.item():.4f}", cells=f"{share:.4f}")
    tower.eval().requires_grad_(False)
    logger.info("vision tower names %.4f of all cells", share)
    return share


def see(tower: Any, pixels: Tensor) -> Tensor:
    """Return what the projector reads of pictures [b, 3, 48, 48]: features [b, 9, width].

    That is the last hidden state before the closing layer norm (``vision_feature_layer=-1``).
    """
    states = tower(pixels, output_hidden_states=True).hidden_states
    features: Tensor = states[-1]
    return features


@torch.no_grad()
def see_all(tower: Any, gallery: Gallery) -> Tensor:
    """Return the features [n, 9, width] of a whole gallery."""
    rows = torch.arange(len(gallery.scenes))
    return torch.cat([see(tower, gallery.normalised(part)) for part in torch.split(rows, 512)])


def _cell_labels(scenes: tuple[Scene, ...]) -> Tensor:
    labels = torch.zeros(len(scenes), PATCHES, 3, dtype=torch.long)
    labels[..., 2] = torch.arange(PATCHES)
    for row, scene in enumerate(scenes):
        for item in scene.objects:
            labels[row, item.cell, 0] = SHAPES.index(item.shape) + 1
            labels[row, item.cell, 1] = COLOURS.index(item.colour) + 1
    return labels
