"""Gives image tokens the meaning of words before the language model learns to use them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easyedit_dualedit.testbed.questions import plural
from easyedit_dualedit.testbed.world import GRID, Scene

if TYPE_CHECKING:
    from easyedit_dualedit.testbed.language import Lesson

logger = logging.getLogger(__name__)

_BATCH = 128
_RATE = 2e-3


def align_projector(lesson: Lesson, steps: int, seed: int) -> float:
    """Train the projector alone, and return the share of variance that it explains.

    The token of a cell is to be the sum of the embeddings of the words for what is there: shape,
    color and place. A question's word then resembles the token that it asks about, and the token
    holds the word of the answer. Without this first stage, which every LLaVA has, looking up what a
    word refers to stays at chance for thousands of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    model: Any = lesson.model
    embeddings = model.get_input_embeddings().weight.detach()
    words = _words_of(lesson, embeddings)
    projector = model.model.multi_modal_projector
    optimiser = torch.optim.Adam(projector.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    share = 0.0
    for _ in range(steps):
        rows = torch.randint(len(lesson.gallery.scenes), (_BATCH,), generator=generator)
        wanted = words[rows]
        error = (projector(lesson.features[rows]) - wanted).square().mean()
        share = 1.0 - float(error.detach() / wanted.square().mean())
        optimiser.zero_grad()
        torch.autograd.backward(error / wanted.square().mean())
        optimiser.step()
        schedule.step()
    logger.info("aligned image tokens with words: %.4f of their variance explained", share)
    return share


def _words_of(lesson: Lesson, embeddings: Tensor) -> Tensor:
    """Return what the image tokens of every picture should be, [n, 9, d]."""
    tokenizer = lesson.scribe.tokenizer

    def meaning(*texts: str) -> Tensor:
        ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        # A word is several tokens: with and without a space before it, and in the plural.
        return torch.stack([embeddings[each].sum(0) for each in ids]).sum(0)

    cache: dict[tuple[str, ...], Tensor] = {}

    def once(*texts: str) -> Tensor:
        if texts not in cache:
            cache[texts] = meaning(*texts)
        return cache[texts]

    def tokens_of(scene: Scene) -> Tensor:
        tokens = torch.zeros(GRID * GRID, embeddings.shape[1])
        for item in scene.objects:
            tokens[item.cell] = (
                once(item.shape, f" {item.shape}", f" {plural(item.shape)}")
                + once(item.colour, f" {item.colour}")
                + once(item.region)
            )
        return tokens

    return torch.stack([tokens_of(scene) for scene in lesson.gallery.scenes])
