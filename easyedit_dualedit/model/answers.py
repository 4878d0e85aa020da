"""What a model says: its greedy answers, and whether one is a target.

The unedited model's own answers are the yardstick of every query without a right answer.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.answer_logits import last_position, logits_at
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.model.video_frames import batches_by_length

_LONGEST = 24

_SPARE_TOKENS = 8
"""Tokens that a free answer may have beyond its target: one that runs on must be seen to."""


def normalised(text: str) -> str:
    """Return text as exact match compares it: case, white space and a final stop do not count."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip().rstrip(".").rstrip()


def exact_match(answer: str, target: str) -> float:
    """Return 1.0 if a generated answer is the target after normalisation, else 0.0."""
    return float(normalised(answer) == normalised(target))


def answer_limit(encoder: Encoder, query: Query) -> int:
    """Return how many tokens a free answer to a query may have, to tell whether it is the target.

    Raises:
        DataError: if the target tokenises to nothing.
    """
    return _SPARE_TOKENS + (len(encoder.target_ids(query.target)) if query.target else 0)


@torch.no_grad()
def greedy_answers(model: Any, encoder: Encoder, batch: Batch, limits: Sequence[int]) -> list[str]:
    """Return a model's greedy answer to each prompt of a batch.

    Args:
        model: generates as a model of transformers does; edited or not.
        encoder: that encoded the batch.
        batch: prompts without answers, padded on the left.
        limits: tokens that the answer of each row may have.
    """
    tokens = model.generate(**batch.inputs, max_new_tokens=max(limits), do_sample=False)
    new = tokens[:, batch.inputs["input_ids"].shape[1] :]
    texts = [
        encoder.tokenizer.decode(row[:limit], skip_special_tokens=True)
        for row, limit in zip(new, limits, strict=True)
    ]
    return [text.strip() for text in texts]


@torch.no_grad()
def first_answer_tokens(encoder: Encoder, queries: Sequence[Query], batch_size: int = 32) -> Tensor:
    """Return the token with which the unedited model begins its answer to each query, long [n].

    Two questions about one picture that it begins to answer alike may mean the same, so that
    nobody can say whether an edit of one should change the other.
    """
    tokens: dict[int, Tensor] = {}
    backbone = encoder.backbone
    for places in batches_by_length(queries, encoder.clip_of, batch_size):
        batch = encoder.encode([queries[place] for place in places], with_target=False)
        call = partial(backbone.model, **batch.inputs, use_cache=False)
        with undisturbed(backbone.model):
            logits = logits_at(backbone, last_position(batch.inputs["input_ids"]), call)
        tokens.update(zip(places, logits.argmax(-1), strict=True))
    if not tokens:
        return torch.empty(0, dtype=torch.long)
    return torch.stack([tokens[place] for place in range(len(queries))])


@torch.no_grad()
def with_own_answers(
    encoder: Encoder, queries: Sequence[Query], batch_size: int = 32
) -> list[Query]:
    """Return the queries with the unedited model's greedy answers as their targets.

    An answer is cut at 24 tokens. A model that says nothing still has a first position to compare,
    so its target is a full stop.
    """
    model: Any = encoder.backbone.model
    answered: dict[int, Query] = {}
    for places in batches_by_length(queries, encoder.clip_of, batch_size):
        part = [queries[place] for place in places]
        batch = encoder.encode(part, with_target=False)
        with undisturbed(encoder.backbone.model):
            texts = greedy_answers(model, encoder, batch, [_LONGEST] * len(part))
        for place, query, text in zip(places, part, texts, strict=True):
            answered[place] = replace(query, target=text or ".")
    return [answered[place] for place in range(len(queries))]
