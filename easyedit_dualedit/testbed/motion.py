"""Records about scenes in motion: an object moves, turns another color, or appears.

Their videos are a few frames of the testbed's pictures, their format is ADS-Edit's. The model was
taught pictures alone: it has seen no video, and knows no answer to these questions.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.facts import facts_of
from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.questions import VQA_FAMILIES, draw_question
from easyedit_dualedit.testbed.world import (
    COLOURS,
    GRID,
    REGIONS,
    SHAPES,
    Scene,
    SceneObject,
    Split,
    draw_scene,
)

FRAMES = 4
"""Frames of a video."""

Change = Literal["moves", "turns", "appears"]
CHANGES: tuple[Change, ...] = ("moves", "turns", "appears")

_SOURCES: dict[Change, tuple[str, ...]] = {
    "moves": ("What happens to the {}?", "Where does the {} go?"),
    "turns": ("What happens to the {}?", "What color does the {} become?"),
    "appears": ("What happens at the {}?", "What appears at the {}?"),
}
_REPHRASES: dict[Change, tuple[str, ...]] = {
    "moves": ("What does the {} do in the video?", "The {} ends up where?"),
    "turns": ("What does the {} do in the video?", "The {} changes to which color?"),
    "appears": ("What can be seen at the {} in the end?", "Which object comes up at the {}?"),
}
_LONGEST = 10_000


@dataclass(frozen=True)
class Motion:
    """A scene before and after one change, and what is asked about it."""

    change: Change
    before: Scene
    after: Scene
    subject: str
    """What the question names."""
    answer: str
    """What happens."""

    def frames(self, seed: int) -> list[Any]:
        """Return the frames as pictures: the scene before the change, and after it."""
        halfway = FRAMES // 2
        return [render(self.before if k < halfway else self.after, seed) for k in range(FRAMES)]


def draw_motion(source: random.Random, accept: Callable[[Scene], bool]) -> Motion:
    """Return a random motion whose scene before it is accepted."""
    change = source.choice(CHANGES)
    while True:
        before = draw_scene(source, accept)
        item = source.choice(before.objects)
        others = tuple(each for each in before.objects if each != item)
        free = [cell for cell in range(GRID * GRID) if cell not in {o.cell for o in before.objects}]
        if change == "appears" and others:
            shown = Scene(others)
            return Motion(change, shown, before, item.region, f"{named(item.name)} appears")
        alone = not any(each.name == item.name for each in others)
        if change == "moves" and alone:
            moved = replace(item, cell=source.choice(free))
            after = Scene((*others, moved))
            return Motion(change, before, after, item.name, f"it moves to the {moved.region}")
        alone = not any(each.shape == item.shape for each in others)
        if change == "turns" and alone:
            turned = replace(item, colour=source.choice([c for c in COLOURS if c != item.colour]))
            after = Scene((*others, turned))
            return Motion(change, before, after, item.shape, f"it turns {turned.colour}")


def false_answer(motion: Motion, source: random.Random) -> str:
    """Return a wrong answer of the same kind."""
    while True:
        wrong = {
            "moves": lambda: f"it moves to the {source.choice(REGIONS)}",
            "turns": lambda: f"it turns {source.choice(COLOURS)}",
            "appears": lambda: f"{named(_random_name(source))} appears",
        }[motion.change]()
        if wrong != motion.answer:
            return wrong


def _random_name(source: random.Random) -> str:
    return f"{source.choice(COLOURS)} {source.choice(SHAPES)}"


def named(name: str) -> str:
    """Return the name of an object with its article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def shifted(motion: Motion, source: random.Random) -> Motion:
    """Return the same change of the same object, the other objects in other cells."""
    held = {item.cell for scene in (motion.before, motion.after) for item in scene.objects}
    steady = [item for item in motion.before.objects if item in motion.after.objects]
    busy = held - {item.cell for item in steady}
    cells = source.sample([c for c in range(GRID * GRID) if c not in busy], len(steady))
    place = {item: replace(item, cell=cell) for item, cell in zip(steady, cells, strict=True)}

    def of(scene: Scene) -> Scene:
        items: tuple[SceneObject, ...] = tuple(place.get(item, item) for item in scene.objects)
        return Scene(items)

    return replace(motion, before=of(motion.before), after=of(motion.after))


def write_motion(folder: Path, split: Split, count: int, seed: int = 0) -> Path:
    """Write records and their frames; return the path of the JSON file.

    The frames lie below `folder`/images, as with the other records of the testbed. Scenes and facts
    of the two splits differ.

    Raises:
        DataError: if the count is out of range, or the folder cannot be written.
    """
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= _LONGEST:
        raise DataError(f"count = {count!r}: an integer from 1 to {_LONGEST}")
    source = random.Random(f"motion {split} {seed}")
    name = f"motion_{split}"
    target = Path(folder) / f"{name}.json"
    try:
        (Path(folder) / "images" / name).mkdir(parents=True, exist_ok=True)
        items = [_item(Path(folder), f"{name}/{k:06d}", split, source) for k in range(count)]
        target.write_text(json.dumps(items, indent=1), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write records to {folder}: {error.strerror or error}") from error
    return target


def _item(folder: Path, stem: str, split: Split, source: random.Random) -> dict[str, Any]:
    def own(scene: Scene) -> bool:
        return scene.split == split

    motion = draw_motion(source, own)
    elsewhere = draw_scene(source, own)
    locality = draw_question(elsewhere, source, VQA_FAMILIES)
    fact = source.choice(facts_of(split))
    wordings = source.randrange(len(_SOURCES[motion.change]))
    images = folder / "images"
    names: dict[str, list[str]] = {}
    for role, shown in (("image", motion), ("image_rephrase", shifted(motion, source))):
        names[role] = [f"{stem}_{role}_{place}.png" for place in range(FRAMES)]
        for name, frame in zip(names[role], shown.frames(source.getrandbits(48)), strict=True):
            frame.save(images / name)
    render(elsewhere, source.getrandbits(48)).save(images / f"{stem}_locality.png")
    return {
        "image_type": "video",
        "src": _SOURCES[motion.change][wordings].format(motion.subject),
        "rephrase": _REPHRASES[motion.change][wordings].format(motion.subject),
        "pred": "",
        "alt": false_answer(motion, source),
        "original_gr": motion.answer,
        **names,
        "loc": fact.prompt,
        "loc_ans": fact.answer,
        "m_loc": f"{stem}_locality.png",
        "m_loc_q": source.choice(locality.source_texts()),
        "m_loc_a": locality.answer,
    }
