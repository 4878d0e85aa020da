"""Measures what a testbed model knows, through its own processor and ``generate``.

``python -m easyedit_dualedit.testbed.evaluation [FOLDER]`` logs the accuracies of a model folder.
"""

import argparse
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.testbed import model_folder
from easyedit_dualedit.testbed.facts import all_facts
from easyedit_dualedit.testbed.picture import render
from easyedit_dualedit.testbed.prompts import PROMPT_FORMS, fact_prompts, user_message
from easyedit_dualedit.testbed.questions import VQA_FAMILIES, Family, draw_question, questions_about
from easyedit_dualedit.testbed.world import Scene, draw_scene

# transformers' image classes import torchvision, which must be importable before.
define_missing_operators()

from transformers import (  # noqa: E402
    AutoProcessor,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
)

logger = logging.getLogger(__name__)

_BATCH = 64
_LONGEST_ANSWER = 40
ALL_VQA, FACTS = "all VQA", "facts"
"""Groups of probes: all questions about pictures but captions, and facts without a picture."""
PROBES_PER_FAMILY = 300
"""Questions of each family in the reported measurement."""


@dataclass(frozen=True)
class Probe:
    """A prompt with its picture, if any, its true answer, and the groups it counts for."""

    prompt: str
    picture: Image.Image | None
    answer: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Exactly right answers among all that were asked for."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right answers divided by asked ones."""
        return self.right / self.asked


def load(folder: Path) -> tuple[LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor]:
    """Return the model of a folder, in evaluation mode and float32, and its processor."""
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor: LlavaOnevisionProcessor = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    return model, processor


@torch.no_grad()
def answer(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    prompts: Sequence[str],
    pictures: Sequence[Image.Image] | None,
) -> list[str]:
    """Return the greedy answers to prompts with one picture each, or with none at all.

    Raises:
        DataError: prompts and pictures differ in number.
    """
    if pictures is not None and len(pictures) != len(prompts):
        raise DataError(
            f"{len(prompts)} prompts came with {len(pictures)} pictures; give one for each prompt, "
            "or None for prompts without pictures"
        )
    # transformers types ``generate`` for a protocol that its own models do not meet.
    generator: Any = model
    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        chats = [
            processor.apply_chat_template(
                user_message(prompt, pictures=0 if pictures is None else 1),
                add_generation_prompt=True,
                tokenize=False,
            )
            for prompt in prompts[part]
        ]
        images = None if pictures is None else list(pictures[part])
        batch = processor(text=chats, images=images, return_tensors="pt", padding=True)
        ids = generator.generate(**batch, max_new_tokens=_LONGEST_ANSWER)
        new = ids[:, batch["input_ids"].shape[1] :]
        answers += processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def unseen_probes(families: Iterable[Family], count: int, seed: int) -> list[Probe]:
    """Return ``count`` questions of each family on scenes that no training has seen.

    Source wordings and rephrasings take turns, and so do the prompt forms.
    """
    source = random.Random(f"probes {seed}")
    probes = []
    for family in families:
        for number in range(count):
            scene = draw_scene(source, partial(_is_unseen, family))
            question = draw_question(scene, source, (family,))
            wording = ("source", "rephrase")[number % 2]
            texts = question.source_texts() if number % 2 == 0 else question.rephrase_texts()
            form = PROMPT_FORMS[number // 2 % len(PROMPT_FORMS)]
            prompt = form.format(source.choice(texts))
            picture = render(scene, source.getrandbits(48))
            groups: tuple[str, ...] = (family,)
            if family != "caption":
                groups += (ALL_VQA, f"{wording} wording", f'form "{form}"')
            probes.append(Probe(prompt, picture, question.answer, groups))
    return probes


def fact_probes() -> list[Probe]:
    """Return every fact in every form."""
    return [
        Probe(prompt, None, fact.answer, (FACTS,))
        for fact in all_facts()
        for prompt in fact_prompts(fact)
    ]


def measure(
    model: LlavaOnevisionForConditionalGeneration,
    processor: LlavaOnevisionProcessor,
    probes: Sequence[Probe],
) -> dict[str, Score]:
    """Return the score of every group of probes, in the order in which groups first appear."""
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    with_picture = [probe for probe in probes if probe.picture is not None]
    without = [probe for probe in probes if probe.picture is None]
    with tqdm(total=len(probes), desc="answers", unit="answer") as bar:
        for kind in (with_picture, without):
            for start in range(0, len(kind), _BATCH):
                part = kind[start : start + _BATCH]
                pictures = [probe.picture for probe in part if probe.picture is not None]
                given = answer(model, processor, [p.prompt for p in part], pictures or None)
                for probe, text in zip(part, given, strict=True):
                    asked.update(probe.groups)
                    right.update(probe.groups if text == probe.answer else ())
                bar.update(len(part))
    return {group: Score(right[group], asked[group]) for group in asked}


def measure_folder(folder: Path, count: int = PROBES_PER_FAMILY, seed: int = 0) -> dict[str, Score]:
    """Return all scores of a model folder: by family, wording and form, captions and facts."""
    model, processor = load(folder)
    probes = unseen_probes((*VQA_FAMILIES, "caption"), count, seed)
    return measure(model, processor, [*probes, *fact_probes()])


def _is_unseen(family: Family, scene: Scene) -> bool:
    return scene.split == "eval" and any(q.family == family for q in questions_about(scene))


def main() -> None:
    """Log the accuracies of a model folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=model_folder())
    parser.add_argument("--count", type=int, default=PROBES_PER_FAMILY, help="per family")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for group, score in measure_folder(arguments.folder, arguments.count, arguments.seed).items():
        logger.info("%-45s %6.2f %%  of %d", group, 100 * score.share, score.asked)


if __name__ == "__main__":
    main()
