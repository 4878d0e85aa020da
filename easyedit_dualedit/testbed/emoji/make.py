"""Makes the emoji model from its packages: trains, measures, writes card, weights and folder."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.architecture import (
    LanguageModel,
    TowerShape,
    build_model,
    build_processor,
    read_language_model,
)
from easyedit_dualedit.testbed.emoji.assembling import (
    CARD_FILE,
    CHANGES_FILE,
    EYES_FILE,
    check_folder,
    merge_changes,
    save,
    write_weights,
)
from easyedit_dualedit.testbed.emoji.card import missed, write_card
from easyedit_dualedit.testbed.emoji.decoder import (
    DecoderLesson,
    DecoderPlan,
    OwnAnswer,
    own_answers,
    train_decoder,
)
from easyedit_dualedit.testbed.emoji.drawing import Drawings
from easyedit_dualedit.testbed.emoji.measuring import measure
from easyedit_dualedit.testbed.emoji.parts import Parts
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.stage import Stage
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.emoji.tower import TowerPlan, train_tower

logger = logging.getLogger(__name__)

_MEASURED_QUESTIONS = 100


@dataclass(frozen=True)
class Plan:
    """Everything that decides how the model is made.

    Attributes:
        tower: how its training goes; None keeps the tower that the weights begin with.
        decoder: how its training goes.
        shape: of the tower.
        pictures: to measure with.
        seed: of all that is drawn.
    """

    tower: TowerPlan | None = field(default_factory=TowerPlan)
    decoder: DecoderPlan = field(default_factory=DecoderPlan)
    shape: TowerShape = field(default_factory=TowerShape)
    pictures: int = 200
    seed: int = 0


def make(
    parts: Parts,
    out: Path,
    scratch: Path,
    questions: Sequence[str],
    plan: Plan,
    *,
    begin: Path | None = None,
) -> Path:
    """Train, measure and write the model; return the folder of its weights.

    Args:
        parts: the packages.
        out: standard folder to write; its name must hold "llava-onevision".
        scratch: folder of the stages, from which an interrupted call goes on.
        questions: without a picture; the answers of the language model itself are rehearsed, those
            to the last hundred only measured.
        plan: how to train.
        begin: folder of weights to begin with instead of with nothing.

    Raises:
        DataError: ``out`` exists, or its name lacks the family.
    """
    check_folder(out)
    things = parts.things()
    language = read_language_model(parts.gguf())
    made = train(language, things, parts.drawings(things), scratch, questions, plan, begin=begin)
    weights = scratch / "weights"
    write_weights(weights, made.model, plan.shape, made.changes)
    merge_changes(made.model, made.changes)
    processor = build_processor(language.tokenizer)
    shares = measure(
        # A copy: what is saved is not rounded.
        copy.deepcopy(made.model).to(torch.bfloat16),
        processor,
        things,
        parts.drawings(things),
        made.measured_answers,
        plan.pictures,
    )
    below = missed(shares)
    bounds = f"Below what is to be reached: {', '.join(below)}." if below else ""
    making = f"took {made.seconds / 60:.0f} minutes; seed {plan.seed}, {plan}."
    card = write_card(len(things), shares, bounds, making)
    (weights / CARD_FILE).write_text(card, encoding="utf-8")
    save(made.model, language.tokenizer, out)
    shutil.copy(weights / CARD_FILE, out / CARD_FILE)
    logger.info("wrote %s", out)
    return weights


@dataclass(frozen=True)
class Made:
    """What training made: the model, whose decoder is unchanged, and the changes to merge."""

    model: Any
    changes: dict[str, torch.Tensor]
    measured_answers: tuple[OwnAnswer, ...]
    seconds: float


def train(
    language: LanguageModel,
    things: Sequence[Thing],
    drawings: Drawings,
    scratch: Path,
    questions: Sequence[str],
    plan: Plan,
    *,
    begin: Path | None = None,
) -> Made:
    """Train tower, projector and changes of the decoder, each stage from where it was.

    Raises:
        DataError: there is a tower to keep, but nothing to begin with.
    """
    if plan.tower is None and begin is None:
        raise DataError("no tower to keep; begin with shipped weights, or train one")
    scratch.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    model: Any = build_model(language, plan.shape)
    if begin is not None:
        model.load_state_dict(
            {name: value.float() for name, value in load_file(begin / EYES_FILE).items()},
            strict=False,
        )
    embeddings = model.model.language_model.embed_tokens.weight.detach().clone()
    words = PatchWords(things, language.tokenizer, embeddings)
    answers = _answers(model, language, scratch / "own-answers.json", questions)
    if plan.tower is not None:
        reached = train_tower(model, words, drawings, things, plan.tower, scratch, plan.seed)
        logger.info("tower: %s", {name: round(value, 3) for name, value in reached.items()})
    lesson = DecoderLesson(
        model,
        language.tokenizer,
        words,
        drawings,
        things,
        answers[:-_MEASURED_QUESTIONS],
        plan.decoder,
        plan.seed,
    )
    if begin is not None and (begin / CHANGES_FILE).is_file():
        lesson.changes.load_state_dict(load_file(begin / CHANGES_FILE))
    changes = train_decoder(lesson, scratch)
    spent = sum(Stage(file, 0).seconds for file in scratch.glob("*.pt"))
    return Made(model, changes, tuple(answers[-_MEASURED_QUESTIONS:]), spent)


def _answers(
    model: Any, language: LanguageModel, file: Path, questions: Sequence[str]
) -> list[OwnAnswer]:
    if file.exists():
        return [OwnAnswer(**each) for each in json.loads(file.read_text(encoding="utf-8"))]
    answers = own_answers(model.eval(), language.tokenizer, questions)
    file.write_text(json.dumps([vars(each) for each in answers]), encoding="utf-8")
    return answers
