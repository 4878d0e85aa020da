"""What the unedited model says: the yardstick of every query without a right answer."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Query

_LONGEST = 24


@torch.no_grad()
def first_answer_tokens(encoder: Encoder, queries: Sequence[Query], batch_size: int = 32) -> Tensor:
    """Return the token with which the unedited model begins its answer to each query, long [n].

    Two questions about one picture that it begins to answer alike may mean the same, so that
    nobody can say whether an edit of one should change the other.
    """
    tokens = []
    for start in range(0, len(queries), batch_size):
        batch = encoder.encode(queries[start : start + batch_size], with_target=False)
        with undisturbed(encoder.backbone.model):
            logits = encoder.backbone.model(**batch.inputs, use_cache=False).logits
        tokens.append(logits[:, -1].argmax(-1))  # rows are padded on the left
    return torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.long)


@torch.no_grad()
def with_own_answers(
    encoder: Encoder, queries: Sequence[Query], batch_size: int = 32
) -> list[Query]:
    """Return the queries with the unedited model's greedy answers as their targets.

    An answer is cut at 24 tokens. A model that says nothing still has a first position to compare,
    so its target is a full stop.
    """
    model: Any = encoder.backbone.model
    answered = []
    for start in range(0, len(queries), batch_size):
        part = queries[start : start + batch_size]
        batch = encoder.encode(part, with_target=False)
        with undisturbed(encoder.backbone.model):
            tokens = model.generate(**batch.inputs, max_new_tokens=_LONGEST, do_sample=False)
        new = tokens[:, batch.inputs["input_ids"].shape[1] :]
        texts = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
        for query, text in zip(part, texts, strict=True):
            answered.append(replace(query, target=text.strip() or "."))
    return answered
