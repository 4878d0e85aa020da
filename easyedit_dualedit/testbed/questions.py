"""Questions about scenes: families, their wordings, and their true and false answers."""

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from easyedit_dualedit.testbed.world import COLOURS, REGIONS, SHAPES, Scene, SceneObject, rearrange

Family = Literal["colour", "shape", "count", "count shape", "count colour", "position", "caption"]

VQA_FAMILIES: tuple[Family, ...] = ("colour", "shape", "count", "count colour", "position")
"""Questions that records ask; the model knows the answers."""

TAUGHT_FAMILIES: tuple[Family, ...] = (*VQA_FAMILIES, "count shape")
"""Questions that the model was taught; the number of a shape it knows too seldom to be asked."""

SOURCE_TEMPLATES: dict[Family, tuple[str, ...]] = {
    "colour": (
        "What color is the {}?",
        "What is the color of the {}?",
        "Which color is the {}?",
        "Tell me the color of the {}.",
    ),
    "shape": (
        "What shape is the {} object?",
        "What is the shape of the {} object?",
        "Which shape is the {} object?",
        "What is the {} thing?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects are in the picture?",
        "How many things do you see?",
        "What is the number of objects?",
    ),
    "count shape": (
        "How many {} are there?",
        "How many {} are in the picture?",
        "How many {} do you see?",
        "What is the number of {}?",
    ),
    "count colour": (
        "How many {} objects are there?",
        "How many {} objects are in the picture?",
        "How many {} things do you see?",
        "What is the number of {} objects?",
    ),
    "position": (
        "Where is the {}?",
        "Where is the {} in the picture?",
        "What is the position of the {}?",
        "Which part of the picture has the {}?",
    ),
    "caption": ("a photo of",),
}

REPHRASE_TEMPLATES: dict[Family, tuple[str, ...]] = {
    "colour": (
        "The {} has which color?",
        "What color does the {} have?",
        "In which color do you see the {}?",
        "Name the color of the {} in the image.",
    ),
    "shape": (
        "The {} object has which shape?",
        "What shape does the {} object have?",
        "In which shape do you see the {} object?",
        "Name the shape of the {} thing in the image.",
    ),
    "count": (
        "Count the objects in the image.",
        "What is the total number of things in the image?",
        "The image shows how many objects?",
        "How many things can be counted here?",
    ),
    "count shape": (
        "Count the {} in the image.",
        "What is the total number of {} in the image?",
        "The image shows how many {}?",
        "How many {} can be counted here?",
    ),
    "count colour": (
        "Count the {} objects in the image.",
        "What is the total number of {} things in the image?",
        "The image shows how many {} objects?",
        "How many {} things can be counted here?",
    ),
    "position": (
        "In which part of the image is the {}?",
        "The {} is in which part of the image?",
        "Name the place of the {} in the image.",
        "In which region do you see the {}?",
    ),
    "caption": (
        "an image of",
        "a picture of",
        "the picture shows",
        "the image shows",
        "there is in the photo",
        "this is a photo of",
    ),
}

_PLURALS = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
_NUMBERS = ("0", "1", "2", "3", "4")


@dataclass(frozen=True)
class Question:
    """What is asked of a scene, before any wording, with its true answer."""

    family: Family
    subject: str
    answer: str

    @property
    def meaning(self) -> str:
        """Family and subject: equal for all wordings, on all scenes."""
        return f"{self.family}: {self.subject}"

    def source_texts(self) -> tuple[str, ...]:
        """Every wording in which an edit may be requested."""
        return tuple(text.format(self.subject) for text in SOURCE_TEMPLATES[self.family])

    def rephrase_texts(self) -> tuple[str, ...]:
        """Every wording in which an edit is asked for again; none is a source wording."""
        return tuple(text.format(self.subject) for text in REPHRASE_TEMPLATES[self.family])


def plural(shape: str) -> str:
    """Return the plural of a shape's name."""
    return _PLURALS[shape]


def questions_about(scene: Scene) -> list[Question]:
    """Return every question that the scene answers without doubt, captions included."""
    shapes = Counter(item.shape for item in scene.objects)
    colours = Counter(item.colour for item in scene.objects)
    names = Counter(item.name for item in scene.objects)
    found = [Question("count", "", str(len(scene.objects))), caption_of(scene)]
    for item in scene.objects:
        if shapes[item.shape] == 1:
            found.append(Question("colour", item.shape, item.colour))
        if colours[item.colour] == 1:
            found.append(Question("shape", item.colour, item.shape))
        if names[item.name] == 1:
            found.append(Question("position", item.name, item.region))
    found += [Question("count shape", _PLURALS[each], str(shapes[each])) for each in SHAPES]
    found += [Question("count colour", each, str(colours[each])) for each in COLOURS]
    return found


def draw_question(
    scene: Scene, source: random.Random, families: tuple[Family, ...] = VQA_FAMILIES
) -> Question:
    """Return one question about the scene: first a family at random, then a question of it.

    Of the counts of a shape or a colour, three in four are not zero.
    """
    available = [question for question in questions_about(scene) if question.family in families]
    family = source.choice([each for each in families if any(q.family == each for q in available)])
    available = [question for question in available if question.family == family]
    present = [question for question in available if question.answer != "0"]
    if present and source.random() < 0.75:
        available = present
    return source.choice(available)


def caption_of(scene: Scene) -> Question:
    """Return the caption task: its answer names the objects in reading order."""
    names = [_with_article(item) for item in scene.objects]
    listed = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    return Question("caption", "", listed)


def false_answer(question: Question, source: random.Random) -> str:
    """Return a wrong answer of the same kind: a color for a color, a number for a number.

    The false caption of a scene is another scene's caption, so it is not made here.

    Raises:
        KeyError: the question is a caption.
    """
    kinds: dict[Family, tuple[str, ...]] = {
        "colour": COLOURS,
        "shape": SHAPES,
        "count": _NUMBERS[1:],
        "count shape": _NUMBERS,
        "count colour": _NUMBERS,
        "position": REGIONS,
    }
    return source.choice([each for each in kinds[question.family] if each != question.answer])


def rearrange_for(scene: Scene, question: Question, source: random.Random) -> Scene:
    """Return the scene with its objects moved about so that the question keeps its answer."""
    fixed = None
    if question.family == "position":
        fixed = next(item for item in scene.objects if item.name == question.subject)
    return rearrange(scene, source, fixed)


def _with_article(item: SceneObject) -> str:
    return ("an " if item.name[0] in "aeiou" else "a ") + item.name
