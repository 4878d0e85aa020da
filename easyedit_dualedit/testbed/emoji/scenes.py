"""Scenes that records are about: which things there are, and which of them a question means."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.drawing import (
    BACKGROUNDS,
    GRID,
    PAIR_SIZE,
    SINGLE_SIZES,
    VENDORS,
    Picture,
    Placed,
)
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.emoji.wordings import Family

SIDES: tuple[Family, ...] = ("left", "right")
"""Questions about one of two things side by side."""

_FLAG_SHARE = 0.15
"""Of the things that names and kinds are asked of; flags have a question of their own."""

_TRIES = 60
"""Pictures drawn before one counts that the model was trained on: a scene may have no other."""

_SAME_KIND_SHARE = 0.5
"""Of the false names: another animal for an animal, not any other thing."""


@dataclass(frozen=True)
class Scene:
    """One or two things, from left to right, before they are drawn; the background's color."""

    things: tuple[Thing, ...]
    background: str


@dataclass(frozen=True)
class Asked:
    """A question about a scene, before any wording."""

    family: Family
    scene: Scene

    @property
    def subject(self) -> Thing:
        """The thing that is asked about; of a background, the first of those before it."""
        return self.scene.things[-1 if self.family == "right" else 0]

    @property
    def side(self) -> str | None:
        """Where the subject is among two, or None of one alone."""
        return self.family if self.family in SIDES else None

    @property
    def answer(self) -> str:
        """What is true."""
        return self.answer_about(self.subject, self.scene.background)

    @property
    def key(self) -> tuple[str, ...]:
        """The same for two that a model cannot tell apart: question, things, maybe background."""
        names = tuple(thing.name for thing in self.scene.things)
        background = (self.scene.background,) if self.family == "background" else ()
        return (self.family, *names, *background)

    def answer_about(self, thing: Thing, background: str) -> str:
        """Return the answer if the subject were another thing, or the background another."""
        if self.family == "kind":
            return thing.kind
        if self.family == "background":
            return background
        if self.family == "country":
            return thing.country or thing.name
        return thing.name


class Chance:
    """Draws scenes, false answers and pictures of the things of one split."""

    def __init__(self, things: Sequence[Thing], source: random.Random, *, unseen: bool) -> None:
        """Take chance from a source.

        Args:
            things: of the split.
            source: of chance.
            unseen: whether pictures are those that the model was never trained on, or others.
        """
        self._source = source
        self._unseen = unseen
        self._flags = [thing for thing in things if thing.country is not None]
        self._others = [thing for thing in things if thing.country is None]
        kinds: dict[str, list[Thing]] = {}
        for thing in things:
            kinds.setdefault(thing.kind, []).append(thing)
        self._kinds: Mapping[str, list[Thing]] = kinds

    def asked(self, family: Family, without: Sequence[Thing] = ()) -> Asked:
        """Return a question about a new scene in which none of some things is.

        Raises:
            DataError: if there are too few things.
        """
        things = [self._thing(family, without)]
        if family in SIDES or (family == "background" and self._source.random() < 0.5):
            things.append(self._thing(family, [*without, *things]))
        background = self._source.choice(list(BACKGROUNDS))
        return Asked(family, Scene(tuple(things), background))

    def other_thing(self, asked: Asked) -> Thing:
        """Return what a false answer may take the subject of a question for."""
        true, family = asked.subject, asked.family
        if family == "kind":
            kind = self._source.choice([kind for kind in self._kinds if kind != true.kind])
            return self._source.choice(self._kinds[kind])
        if family == "country":
            pool = self._flags
        elif true.country is not None or self._source.random() < _SAME_KIND_SHARE:
            pool = self._kinds[true.kind]
        else:
            pool = self._others
        fitting = [thing for thing in pool if thing not in asked.scene.things]
        return self._source.choice(fitting or [t for t in self._others if t != true])

    def other_background(self, background: str) -> str:
        """Return another background's color."""
        return self._source.choice([color for color in BACKGROUNDS if color != background])

    def picture(self, scene: Scene, unlike: Picture | None = None) -> Picture:
        """Return a picture of a scene, seen or unseen as asked where it has such pictures.

        Args:
            scene: the things and the background.
            unlike: a picture of the same things, which the new one has by other vendors and in
                another place or size.
        """
        tries = 0
        while True:
            tries += 1
            placed = tuple(
                self._placed(thing, place, len(scene.things), unlike)
                for place, thing in enumerate(scene.things)
            )
            picture = Picture(placed, scene.background)
            fits = picture.unseen == self._unseen or tries > _TRIES
            if fits and (unlike is None or _moved(placed, unlike)):
                return picture

    def _thing(self, family: Family, without: Sequence[Thing]) -> Thing:
        pool = self._others
        if family == "country" or (self._source.random() < _FLAG_SHARE and self._flags):
            pool = self._flags
        fitting = [thing for thing in pool if thing not in without]
        if not fitting:
            raise DataError(
                f"there are too few things to draw records of: {len(self._flags)} flags and"
                f" {len(self._others)} others; give all things of a split"
            )
        return self._source.choice(fitting)

    def _placed(self, thing: Thing, place: int, of: int, unlike: Picture | None) -> Placed:
        last = None if unlike is None else unlike.things[place].vendor
        vendors = [vendor for vendor in VENDORS if vendor != last]
        size = self._source.choice(SINGLE_SIZES) if of == 1 else PAIR_SIZE
        column = place * PAIR_SIZE if of == 2 else self._source.randint(0, GRID - size)
        row = self._source.randint(0, GRID - size)
        return Placed(thing.name, self._source.choice(vendors), size, row, column)


def _moved(placed: Sequence[Placed], unlike: Picture) -> bool:
    return all(
        (new.size, new.row, new.column) != (old.size, old.row, old.column)
        for new, old in zip(placed, unlike.things, strict=True)
    )
