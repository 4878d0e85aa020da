"""Draws the pictures that the emoji model is taught with."""

import random
from collections.abc import Sequence

from easyedit_dualedit.testbed.emoji.drawing import Picture, draw_pair, draw_single
from easyedit_dualedit.testbed.emoji.things import Thing

_FLAG_WEIGHT = 1.6


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
