"""Teaches the decoder to answer questions about pictures, and to stay the model that it was."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.testbed.architecture import END
from easyedit_dualedit.testbed.emoji.architecture import IMAGE_TOKENS, build_processor
from easyedit_dualedit.testbed.emoji.drawing import GRID, Drawings, Picture, stack_pixels
from easyedit_dualedit.testbed.emoji.low_rank import Changes
from easyedit_dualedit.testbed.emoji.patch_states import patch_states
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.picture_source import PictureSource
from easyedit_dualedit.testbed.emoji.questions import Family, questions_about, word
from easyedit_dualedit.testbed.emoji.stage import Stage
from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.sheet import Exercise, Row, Scribe

logger = logging.getLogger(__name__)

_RATE = 1e-3
_WARM_UP = 10
_ROWS_AT_ONCE = 4
_NOISE = 0.12
_TEXT_ROWS, _TEXTS_A_ROW = 2, 5
_SECONDS_BETWEEN_LINES = 60.0
_FAMILY_WEIGHTS: Mapping[Family, float] = {
    "name": 3.0,
    "left": 2.5,
    "right": 2.5,
    "kind": 2.4,
    "kind left": 1.5,
    "kind right": 1.5,
    "country": 1.5,
    "country left": 1.0,
    "country right": 1.0,
    "background": 0.9,
}


@dataclass(frozen=True)
class DecoderPlan:
    """How the decoder is taught.

    Attributes:
        oracle_steps: of the first part, where patches are the exact embeddings of what they should
            say, some of them wrong, all of them noisy; needs no tower, so it can be taught first.
        steps: of the second part, on what the tower and the projector really say.
        pictures: a step, in rows of ``questions``.
        questions: about each picture.
        rank: of the changes.
        rehearsal: weight of staying the model that it was, without a picture.
    """

    oracle_steps: int = 120
    steps: int = 300
    pictures: int = 8
    questions: int = 6
    rank: int = 32
    rehearsal: float = 1.5


@dataclass(frozen=True)
class OwnAnswer:
    """A question without a picture and what the language model itself answers."""

    question: str
    answer: str


class DecoderLesson:
    """Everything that teaching the decoder needs."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        words: PatchWords,
        drawings: Drawings,
        things: Sequence[Thing],
        own_answers: Sequence[OwnAnswer],
        plan: DecoderPlan,
        seed: int,
    ) -> None:
        """Keep the parts, and make the decoder compute in bfloat16 with changes in float32."""
        self.model, self.words, self.drawings, self.plan = model, words, drawings, plan
        self.things = {thing.name: thing for thing in things}
        self.scribe = Scribe(build_processor(tokenizer), IMAGE_TOKENS)
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        self.own_answers = list(own_answers)
        self.seed = seed
        torch.manual_seed(seed)
        self.decoder = model.model.language_model
        # Frozen, so their gradients' precision is all that this costs; twice as fast.
        self.decoder.to(torch.bfloat16)
        self.changes = Changes(self.decoder, plan.rank)
        self.newline = model.model.image_newline.detach().clone()
        self._noise = float(words.embeddings.std())

    def picture_loss(
        self, pictures: Sequence[Picture], source: random.Random, *, real: bool
    ) -> Any:
        """Return the loss over all answers, and the share of right answer tokens."""
        rows = [Row(number, self._exercises(each, source)) for number, each in enumerate(pictures)]
        said = self._said(pictures) if real else self._oracle(pictures, source)
        sheet = self.scribe.write(rows)
        states = self._states(sheet, self._laid_out(said))
        asked = sheet.weights[:, 1:] > 0
        logits = functional.linear(states[:, :-1][asked], self.decoder.embed_tokens.weight).float()
        wanted = sheet.ids[:, 1:][asked]
        right = float((logits.argmax(-1) == wanted).float().mean())
        return functional.cross_entropy(logits, wanted), right

    def rehearsal_loss(self, source: random.Random) -> tuple[Tensor, float]:
        """Return how far answers without a picture are from the frozen model's, and agreement."""
        drawn = source.sample(
            self.own_answers, min(len(self.own_answers), _TEXT_ROWS * _TEXTS_A_ROW)
        )
        exercises = [Exercise(each.question, each.answer) for each in drawn]
        rows = [Row(None, tuple(exercises[start::_TEXT_ROWS])) for start in range(_TEXT_ROWS)]
        sheet = self.scribe.write([row for row in rows if row.exercises])
        asked = sheet.weights[:, 1:] > 0
        embeddings = self.decoder.embed_tokens.weight
        with torch.no_grad(), self.changes.off():
            before = functional.linear(self._states(sheet, None)[:, :-1][asked], embeddings)
            before = functional.log_softmax(before.float(), -1)
        after = functional.linear(self._states(sheet, None)[:, :-1][asked], embeddings)
        after = functional.log_softmax(after.float(), -1)
        loss = (before.exp() * (before - after)).sum(-1).mean()
        return loss, float((before.argmax(-1) == after.argmax(-1)).float().mean())

    def _exercises(self, picture: Picture, source: random.Random) -> tuple[Exercise, ...]:
        asked = questions_about(picture, self.things)
        drawn = source.choices(
            asked, [_FAMILY_WEIGHTS[each.family] for each in asked], k=self.plan.questions
        )
        return tuple(Exercise(word(each, source), each.answer) for each in drawn)

    def _oracle(self, pictures: Sequence[Picture], source: random.Random) -> Tensor:
        """Return what patches should say, with errors such as a tower makes [n, 36, d]."""
        tokens = self.words.token_of_entry[self.words.of(pictures)[0]]
        wrong = torch.rand(tokens.shape) < _NOISE * 2 * source.random()
        tokens = torch.where(wrong, torch.randint(len(self.words.tokens), tokens.shape), tokens)
        said = self.words.embeddings[tokens]
        return said + torch.randn_like(said) * self._noise * 0.5 * source.random()

    def _said(self, pictures: Sequence[Picture]) -> Tensor:
        pixels = torch.from_numpy(stack_pixels(self.drawings, pictures)).float() / 127.5 - 1.0
        with torch.no_grad():
            states = patch_states(self.model.model.vision_tower, pixels)
        said: Tensor = self.model.model.multi_modal_projector(states)
        return said

    def _laid_out(self, whole: Tensor) -> Tensor:
        """Return image tokens [n, 78, d]: the whole picture, then its tile row by row."""
        count, _, width = whole.shape
        newline = self.newline.expand(count, GRID, 1, width)
        tile = torch.cat([whole.view(count, GRID, GRID, width), newline], dim=2)
        return torch.cat([whole, tile.flatten(1, 2)], dim=1)

    def _states(self, sheet: Any, images: Tensor | None) -> Tensor:
        embeddings = self.decoder.embed_tokens(sheet.ids)
        if images is not None:
            places = (sheet.ids == self.image).unsqueeze(-1)
            embeddings = embeddings.masked_scatter(places, images.to(embeddings.dtype))
        states: Tensor = self.decoder(
            inputs_embeds=embeddings,
            attention_mask=sheet.visible,
            position_ids=sheet.positions,
            use_cache=False,
        ).last_hidden_state
        return states


def train_decoder(lesson: DecoderLesson, folder: Path) -> dict[str, Tensor]:
    """Teach the decoder in both parts; return its changes, which are then merged.

    Args:
        lesson: what to teach.
        folder: of the stages' files, from which an interrupted training goes on.
    """
    plan = lesson.plan
    _run(lesson, folder / "decoder-oracle.pt", plan.oracle_steps, 0.0, real=False)
    _run(lesson, folder / "decoder-real.pt", plan.steps, 0.3, real=True)
    changes = lesson.changes.state_dict()
    lesson.changes.remove()
    lesson.decoder.float()
    return changes


def _run(lesson: DecoderLesson, file: Path, steps: int, begin: float, *, real: bool) -> None:
    matrices = lesson.changes.matrices()
    adam = torch.optim.AdamW(matrices, lr=_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    stage = Stage(file, steps, changes=lesson.changes, adam=adam)
    source = random.Random(f"{lesson.seed} {stage.step} {real}")
    pictures = PictureSource(list(lesson.things.values()), source.getrandbits(32))
    parts = max(1, lesson.plan.pictures // _ROWS_AT_ONCE)
    reported = time.monotonic()
    while not stage.is_done:
        share = begin + (1 - begin) * stage.step / steps
        factor = min(1.0, (stage.step + 1) / _WARM_UP) * max(0.03, 0.5 + 0.5 * _cosine(share))
        adam.param_groups[0]["lr"] = _RATE * factor
        adam.zero_grad()
        right, agreed = 0.0, 1.0
        for _ in range(parts):
            drawn = pictures.draw(min(_ROWS_AT_ONCE, lesson.plan.pictures))
            loss, share_right = lesson.picture_loss(drawn, source, real=real)
            torch.autograd.backward(loss / parts)
            right += share_right / parts
        if lesson.own_answers:
            kept, agreed = lesson.rehearsal_loss(source)
            torch.autograd.backward(kept * lesson.plan.rehearsal)
        nn.utils.clip_grad_norm_(matrices, 1.0)
        adam.step()
        stage.advance()
        if time.monotonic() - reported > _SECONDS_BETWEEN_LINES or stage.is_done:
            reported = time.monotonic()
            logger.info(
                "%s step %d: loss %.3f, right tokens %.3f, as the language model %.3f",
                *(file.stem, stage.step, loss.item(), right, agreed),
            )


@torch.no_grad()
def own_answers(
    model: Any, tokenizer: Any, questions: Sequence[str], longest: int = 12
) -> list[OwnAnswer]:
    """Return what the language model itself answers, greedily, in at most so many tokens."""
    processor: Any = build_processor(tokenizer)
    answers: list[OwnAnswer] = []
    for start in range(0, len(questions), 32):
        part = list(questions[start : start + 32])
        chats = [
            processor.apply_chat_template(
                [{"role": "user", "content": each}], add_generation_prompt=True, tokenize=False
            )
            for each in part
        ]
        inputs = tokenizer(chats, return_tensors="pt", padding=True, add_special_tokens=False)
        rows = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        for question, row in zip(part, rows[:, inputs["input_ids"].shape[1] :], strict=True):
            text = tokenizer.decode(row, skip_special_tokens=False).split(END)[0]
            answers.append(OwnAnswer(question, text.replace(tokenizer.pad_token, "")))
    return answers


def _cosine(share: float) -> float:
    return math.cos(math.pi * min(1.0, share))
