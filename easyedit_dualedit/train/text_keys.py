"""Fits the keys by which a `learned` gate tells questions without a picture apart.

It is a linear discriminant analysis: of what wordings of one question have in common, the
directions in which questions differ most. It takes no steps. Every record of MMEdit's files asks
about a picture, so that the rest of the gate is taught by pictures, and its keys of two questions
that stand alone are nearly the same.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from easyedit_dualedit.data.records import QUESTION_PREFIX, Record
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.gate_keys import EDIT_COUNTS, KEY_WIDTH, STRICTEST, TextKeys
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.config import TrainingConfig
from easyedit_dualedit.train.gate_reading import read_gate_states
from easyedit_dualedit.train.gate_thresholds import ScopedSimilarities, thresholds_by_count
from easyedit_dualedit.train.gate_whitening import Whitening
from easyedit_dualedit.train.token_rarity import Rarity

logger = logging.getLogger(__name__)

FEWEST_QUESTIONS = 30
"""Distinct questions that text keys are fitted to, at least."""

_MOST = 2000
"""Questions of each sort, at most."""
_HELD_OUT = 6
"""One question in so many chooses the thresholds and teaches nothing."""
_LETTERS = 0.5
"""Share of the spelling in a similarity."""
_ADDED = 0.05
"""Variance that is added to every axis, as a share of the mean one."""
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Wordings:
    """Distinct questions, each asked in two ways."""

    asked: list[str]
    again: list[str]

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Wordings":
        """Return the questions of records, as if they stood alone.

        Requests are asked again as their text rephrase; text-locality questions, which have none,
        as the data have it, in lower case, or with words around them.
        """
        own: dict[str, str] = {}
        other: dict[str, str] = {}
        for record in records:
            if len(own) < _MOST:
                own.setdefault(record.request.prompt, record.text_rephrase.prompt)
            typed = record.text_locality.prompt.removeprefix(QUESTION_PREFIX)
            if len(other) < _MOST and typed not in other:
                other[typed] = _reworded(typed, len(other))
        pairs = other | own
        return cls(list(pairs), list(pairs.values()))


def fit_text_keys(
    editor: DualEditor, records: Sequence[Record], config: TrainingConfig, *, progress: bool
) -> None:
    """Give the editor's gate keys fitted to the questions of records.

    Where there are too few of them it stays as it is.

    Args:
        editor: whose gate, and whose text layer is read.
        records: at least one.
        config: of the training.
        progress: whether to show a bar.
    """
    wordings = Wordings.of(records)
    count = len(wordings.asked)
    if count < FEWEST_QUESTIONS:
        logger.warning(
            "%d distinct questions are too few to tell edits without a picture apart by; it takes"
            " %d, and the gate %s",
            count,
            FEWEST_QUESTIONS,
            "has no keys of them" if editor.gate.text is None else "keeps the keys that it had",
        )
        return
    source = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(count, generator=source)
    apart, taught = order[: count // _HELD_OUT], order[count // _HELD_OUT :]
    said = [each[place] for each in (wordings.asked, wordings.again) for place in taught]
    rarity = Rarity.of(editor.encoder, said)
    alone = [wordings.asked[place] for place in apart]
    siblings = rarity.siblings(alone)
    keys = TextKeys(len(editor.gate.mean), len(rarity.weights)).to(editor.gate.mean.device)
    keys.weights.copy_(rarity.weights)
    keys.letters.fill_(_LETTERS)
    editor.gate.text = keys  # whose weights what is read now depends on
    prompts = wordings.asked + wordings.again + siblings
    read = read_gate_states(
        editor,
        [Query(prompt) for prompt in prompts],
        first=[True] * count + [False] * (len(prompts) - count),
        autocast=config.autocast,
        progress=progress,
    )
    asked, again = read.of(0, count), read.of(count, 2 * count)
    _fit(keys, asked.text[taught], again.text[taught])
    _choose_thresholds(
        keys,
        asked.text[apart],
        again.text[apart],
        read.of(2 * count, len(prompts)).text,
        torch.tensor([each != one for each, one in zip(siblings, alone, strict=True)]),
        asked.first[apart],
        editor.config.gate.false_open_rate,
    )


def _fit(keys: TextKeys, asked: Tensor, again: Tensor) -> None:
    """Set what keys are made by, by the means of two wordings, [n, d] each."""
    asked, again = keys.inputs(asked), keys.inputs(again)
    whitening = Whitening.of(asked, again - asked)
    seen = whitening.apply(asked)
    variances, axes = torch.linalg.eigh(seen.T @ seen / len(seen))
    # They are in ascending order.
    variances, axes = variances[-KEY_WIDTH:].clamp(min=_SMALLEST), axes[:, -KEY_WIDTH:]
    # What two wordings differ in is twice what one of them has of its own.
    own = ((again - asked) @ whitening.factor @ axes).square().mean(0) / 2
    meant = (1 - own / variances).clamp(min=0)
    weights = (meant / (variances + _ADDED * variances.mean())).sqrt()
    keys.mean.copy_(whitening.mean)
    keys.axes[:, : axes.shape[1]] = whitening.factor @ (axes * weights)


def _choose_thresholds(
    keys: TextKeys,
    asked: Tensor,
    again: Tensor,
    siblings: Tensor,
    differ: Tensor,
    answers: Tensor,
    false_open_rate: float,
) -> None:
    """Set the thresholds by the means of held-out questions, [n, d] each.

    Args:
        keys: whose.
        asked: of the questions.
        again: of their other wordings.
        siblings: of the same questions about something else.
        differ: True where there is such a sibling, bool [n].
        answers: first token of the unedited model's answer to each question, long [n].
        false_open_rate: as of `thresholds_by_count`.
    """
    edits = keys(asked)
    similarity = edits @ edits.T
    every = torch.ones(len(edits), dtype=torch.bool, device=edits.device)
    after = torch.arange(len(edits), device=edits.device).roll(-1)
    near = keys(siblings) @ edits.T
    chosen = thresholds_by_count(
        [
            ScopedSimilarities(True, keys(again) @ edits.T, every),
            # Each edit with the question of the one after it, whose own edit rightly answers it.
            ScopedSimilarities(False, similarity[after], every, after),
        ],
        EDIT_COUNTS,
        false_open_rate=false_open_rate,
        hardest=[
            ScopedSimilarities.of_nearest(similarity, answers),
            ScopedSimilarities(False, near, differ.to(every)),
        ],
    )
    strictest = [min(chosen[count].threshold, STRICTEST) for count in EDIT_COUNTS]
    keys.thresholds.copy_(torch.tensor(strictest))
    first = chosen[EDIT_COUNTS[0]]
    logger.info(
        "without a picture: threshold %.3f, opens rightly for %.4f, wrongly for %.4f, for the same"
        " question about something else for %.4f",
        first.threshold,
        first.true_open_rate,
        first.false_open_rate,
        float((near.diagonal() >= first.threshold).float().mean()),
    )


def _reworded(question: str, place: int) -> str:
    """Return a question asked in one of several ways, in turns."""
    ways = (
        f"{QUESTION_PREFIX}{question}",
        question.rstrip("?. ").lower(),
        f"Question: {question} Answer:",
        f"{question} Answer briefly.",
        f"Please tell me: {question}",
    )
    return ways[place % len(ways)]
