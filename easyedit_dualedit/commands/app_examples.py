"""Examples for the page: pictures that a model of ours knows, each with an edit to try."""

import random

from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.commands.records import name_of, own_records
from easyedit_dualedit.plugin.values import EMOJI, TESTBED
from easyedit_dualedit.testbed.emoji import places
from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.questions import VQA_FAMILIES, draw_question
from easyedit_dualedit.testbed.records import Case, draw_cases

COUNT = 12


def examples_of(model: str, count: int = COUNT) -> list[Trial]:
    """Return examples for a model; none for models that are not ours.

    Args:
        model: as hyperparameters name it.
        count: how many at most.

    Raises:
        DualEditError: if they cannot be drawn.
    """
    name = name_of(model)
    if name == TESTBED:
        cases = draw_cases("vqa", "eval", count, seed=0)
        return [_of_case(case, random.Random(f"page {n}")) for n, case in enumerate(cases)]
    if name == EMOJI:
        return _of_records(model, count)
    return []


def _of_case(case: Case, source: random.Random) -> Trial:
    (_, scene, seed), (_, moved, other_seed), _ = case.pictures
    # Something about another thing in the picture: its answer has to stay.
    subject = case.question.subject.split()
    unrelated = draw_question(scene, source, VQA_FAMILIES)
    while unrelated.family == case.question.family or set(unrelated.subject.split()) & set(subject):
        unrelated = draw_question(scene, source, VQA_FAMILIES)
    return Trial(
        picture=render(scene, seed),
        prompt=case.record.src,
        target=case.record.alt,
        rephrase=case.record.rephrase,
        other_picture=render(moved, other_seed),
        unrelated=unrelated.source_texts()[0],
        name=", ".join(item.name for item in scene.objects),
    )


def _of_records(model: str, count: int) -> list[Trial]:
    trials = []
    for record in own_records(model, places.records_folder(), "eval", count):
        texts = {
            "prompt": record.request.prompt,
            "target": record.request.target,
            "rephrase": record.text_rephrase.prompt,
            "unrelated": record.image_locality.prompt,
            "name": record.request.prompt,
        }
        pictures = (record.request.pictures, record.image_rephrase.pictures)
        trials.append(Trial.of(texts, *(each[0] if each else None for each in pictures)))
    return trials
