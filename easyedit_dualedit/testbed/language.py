"""Teaches the language model to answer, on the frozen vision tower's features."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from easyedit_dualedit.testbed.facts import all_facts
from easyedit_dualedit.testbed.prompts import PROMPT_FORMS, fact_prompts
from easyedit_dualedit.testbed.questions import (
    TAUGHT_FAMILIES,
    Family,
    Question,
    draw_question,
    questions_about,
)
from easyedit_dualedit.testbed.sheet import Exercise, Row, Scribe
from easyedit_dualedit.testbed.vision import Gallery
from easyedit_dualedit.testbed.world import GRID, Scene

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

logger = logging.getLogger(__name__)

_PICTURE_ROWS = 20
_QUESTIONS_PER_PICTURE = 3
_FACT_ROWS = 3
_FACTS_PER_ROW = 6
_FORM_WEIGHTS = (2, 1, 1)
_DRILL_ROWS = 24
_HARD_FAMILIES: tuple[Family, ...] = ("count shape", "count colour", "position")
_HARD_FROM = 0.43
"""Share of the steps after which rows are drawn hard."""
_CAPTION_SHARE = 0.6
_LOOKUP_RATE = 2e-3
_PEAK_RATE = 1.5e-3
_WARM_UP = 30
_DECAY_FROM = 0.75
"""Share of the steps after which the learning rate falls, in a line, to almost nothing."""
_SMALLEST_DEVIATION = 1e-3


class Lesson:
    """Everything that one training of the language model needs."""

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        processor: LlavaOnevisionProcessor,
        gallery: Gallery,
        features: Tensor,
        seed: int,
    ) -> None:
        """Keep the parts; ``features`` [n, 9, width] are the tower's, of every picture."""
        self.model = model
        self.scribe = Scribe(processor)
        self.gallery = gallery
        self.mean = features.mean(dim=(0, 1))
        self.deviation = features.std(dim=(0, 1)).clamp_min(_SMALLEST_DEVIATION)
        self.features = (features - self.mean) / self.deviation
        self.source = random.Random(f"lesson {seed}")
        self._facts = [
            Exercise(form, fact.answer) for fact in all_facts() for form in fact_prompts(fact)
        ]

    def draw_picture_row(self, *, hard: bool = False) -> Row:
        """Return exercises on a random picture: a drill, a caption and several questions.

        With ``hard``, there is one question of each family that takes longest to learn, and a
        caption less often.
        """
        number = self.source.randrange(len(self.gallery.scenes))
        scene = self.gallery.scenes[number]
        families: list[tuple[Family, ...]] = [("caption",)]
        if hard:
            answered = {question.family for question in questions_about(scene)}
            families = families if self.source.random() < _CAPTION_SHARE else []
            families += [(each,) for each in _HARD_FAMILIES if each in answered] + [TAUGHT_FAMILIES]
        else:
            families += [TAUGHT_FAMILIES] * _QUESTIONS_PER_PICTURE
        drawn = [draw_question(scene, self.source, each) for each in families]
        drill = draw_drill(scene, self.source)
        return Row(number, (drill, *(self._word(question) for question in drawn)))

    def draw_drill_row(self) -> Row:
        """Return two drills on a random picture."""
        number = self.source.randrange(len(self.gallery.scenes))
        scene = self.gallery.scenes[number]
        return Row(number, (draw_drill(scene, self.source), draw_drill(scene, self.source)))

    def draw_fact_row(self) -> Row:
        """Return random facts, each in a random form."""
        return Row(None, tuple(self.source.choices(self._facts, k=_FACTS_PER_ROW)))

    def _word(self, question: Question) -> Exercise:
        wordings = self.source.choice((question.source_texts(), question.rephrase_texts()))
        (form,) = self.source.choices(PROMPT_FORMS, weights=_FORM_WEIGHTS)
        return Exercise(form.format(self.source.choice(wordings)), question.answer)

    def loss(self, rows: Sequence[Row]) -> tuple[Tensor, float]:
        """Return the weighted loss over answers, and the share of right answer tokens.

        Either all rows have a picture or none has.
        """
        sheet = self.scribe.write(rows)
        embeddings = self.model.get_input_embeddings()(sheet.ids)
        pictures = [row.picture for row in rows if row.picture is not None]
        if pictures:
            places = (sheet.ids == self.model.config.image_token_id).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(places, self.look(self.features[pictures]))
        states = self.model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=sheet.visible,
            position_ids=sheet.positions,
            use_cache=False,
        ).last_hidden_state
        asked = sheet.weights[:, 1:] > 0
        logits = self.model.lm_head(states[:, :-1][asked])
        wanted = sheet.ids[:, 1:][asked]
        weights = sheet.weights[:, 1:][asked]
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        right = (logits.argmax(-1) == wanted).float()
        return (losses * weights).sum() / weights.sum(), right.mean().item()

    def look(self, features: Tensor) -> Tensor:
        """Return the image tokens [b, 21, d] of standardised features [b, 9, width].

        The whole picture first, then its one tile row by row, each row closed by a newline.
        """
        whole = self.model.model.multi_modal_projector(features)
        batch, _, width = whole.shape
        newline = self.model.model.image_newline.expand(batch, GRID, 1, width)
        tile = torch.cat([whole.view(batch, GRID, GRID, width), newline], dim=2)
        return torch.cat([whole, tile.flatten(1, 2)], dim=1)

    def fold_standardisation(self) -> None:
        """Move the standardisation of features into the projector, which then reads raw ones."""
        first = self.model.model.multi_modal_projector.linear_1
        with torch.no_grad():
            first.weight /= self.deviation
            first.bias -= first.weight @ self.mean


def draw_drill(scene: Scene, source: random.Random) -> Exercise:
    """Return an exercise that names the objects in random order, by color or by shape.

    A question asks for two steps: what is meant, then what it is like. Learning both at once takes
    long. A drill teaches the second alone: each word written calls for the next. The order is not
    asked for, since nothing tells it.
    """
    by_shape = source.random() < 0.5
    objects = source.sample(scene.objects, len(scene.objects))
    answer, given = "", []
    for item in objects:
        first, second = (item.shape, item.colour) if by_shape else (item.colour, item.shape)
        given.append(f", {first}" if answer else first)
        answer += f"{given[-1]} {second} {item.region}"
    prompt = "List by shape." if by_shape else "List by color."
    return Exercise(prompt, answer, tuple(given))


def train_lookups(lesson: Lesson, steps: int, seed: int) -> None:
    """Train projector and language model in place on drills alone."""
    torch.manual_seed(seed)
    parameters = [p for p in lesson.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, _LOOKUP_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: min(1, (k + 1) / _WARM_UP))
    lesson.model.train()
    for _ in (bar := tqdm(range(steps), desc="look-ups", unit="step", mininterval=5)):
        loss, right = lesson.loss([lesson.draw_drill_row() for _ in range(_DRILL_ROWS)])
        _step(parameters, optimiser, loss)
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{right:.2f}")


def _step(parameters: list[nn.Parameter], optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()


def train_language(lesson: Lesson, steps: int, seed: int) -> None:
    """Train projector and language model in place; afterwards the whole model is usable."""
    torch.manual_seed(seed)
    model = lesson.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=_PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        remaining = (1 - step / steps) / (1 - _DECAY_FROM)
        return min(1.0, (step + 1) / _WARM_UP) * min(1.0, max(0.01, remaining))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    model.train()
    for step in (bar := tqdm(range(steps), desc="language", unit="step", mininterval=5)):
        seen_loss, seen_right = lesson.loss(
            [lesson.draw_picture_row(hard=step >= _HARD_FROM * steps) for _ in range(_PICTURE_ROWS)]
        )
        fact_loss, fact_right = lesson.loss([lesson.draw_fact_row() for _ in range(_FACT_ROWS)])
        loss = seen_loss + 0.3 * fact_loss
        _step(parameters, optimiser, loss)
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{seen_right:.2f}/{fact_right:.2f}")
        if step % 50 == 49:
            logger.info(
                "step %d: loss %.3f, right tokens: pictures %.2f, facts %.2f",
                step + 1,
                loss.item(),
                seen_right,
                fact_right,
            )
    lesson.fold_standardisation()
    model.eval()  # type: ignore[no-untyped-call]
