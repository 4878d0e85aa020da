"""What is in an edit's scope and what is not: the queries that teach and test a gate."""

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from easyedit_dualedit.batch import Encoder, Query
from easyedit_dualedit.records import METRICS, Record, queries_of

IN_SCOPE = ("reliability", "text_generality", "image_generality")
"""Queries that an edit should answer."""

OTHER_IMAGE = "other_image"
"""The edit's text with the picture of another record."""
OTHER_QUESTION = "other_question"
"""The edit's picture with the question of another record."""
NO_IMAGE = "no_image"
"""The edit's text without a picture."""

HARD = (OTHER_IMAGE, OTHER_QUESTION, NO_IMAGE)
"""Queries that share half of the edit and are out of its scope (2511.13243: RI and NI)."""

SCOPE = (*METRICS, *HARD)


def scope_queries(records: Sequence[Record], *, seed: int = 0) -> dict[str, list[Query]]:
    """Return every kind of query of `SCOPE` for each record.

    The other record of a hard query is drawn at random; it is the record itself only if there is
    no other. Hard queries have no target, since there is no right answer to them.
    """
    source = random.Random(seed)
    count = len(records)
    partners = [
        records[(place + source.randrange(1, count)) % count] if count > 1 else record
        for place, record in enumerate(records)
    ]
    found = {metric: queries_of(records, metric) for metric in METRICS}
    requests = [replace(record.request, target=None) for record in records]
    pairs = list(zip(requests, partners, strict=True))
    found[OTHER_IMAGE] = [replace(own, image=other.request.image) for own, other in pairs]
    found[OTHER_QUESTION] = [replace(own, prompt=other.request.prompt) for own, other in pairs]
    found[NO_IMAGE] = [replace(own, image=None) for own in requests]
    return found


@torch.no_grad()
def first_answer_tokens(encoder: Encoder, queries: Sequence[Query], batch_size: int = 32) -> Tensor:
    """Return the token with which the unedited model begins its answer to each query, long [n].

    Two questions about one picture that it begins to answer alike may mean the same, so that
    nobody can say whether an edit of one should change the other.
    """
    tokens = []
    for start in range(0, len(queries), batch_size):
        batch = encoder.encode(queries[start : start + batch_size], with_target=False)
        logits = encoder.backbone.model(**batch.inputs, use_cache=False).logits
        tokens.append(logits[:, -1].argmax(-1))  # rows are padded on the left
    return torch.cat(tokens) if tokens else torch.empty(0, dtype=torch.long)
