"""Queries that come close to an edit and are none of its business: RI, NI and CI.

The locality queries of a record share nothing with its edit, which hides edits that fire on half of
it ("transient blindness", 2511.13243). These share the text, the picture, or come from the sample
that is most like the edit. None has a right answer: what counts is that the model says the same
before and after, so each gets the unedited model's own answer as its target.
"""

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.answers import first_answer_tokens, with_own_answers
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import record as record_layers
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Query

logger = logging.getLogger(__name__)

SIMILAR_TEXT = "similar_text"
"""Another sample, picture and question: the one whose question is most like the edit's."""
SIMILAR_IMAGE = "similar_image"
"""Another sample, picture and question: the one whose picture is most like the edit's."""

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "RI": (OTHER_IMAGE, OTHER_QUESTION),
    "NI": (NO_IMAGE,),
    "CI": (SIMILAR_TEXT, SIMILAR_IMAGE),
}
"""Metric -> the kinds of query that it averages: random image (or question), no image, and
confusingly similar."""

KINDS = tuple(kind for kinds in FAMILIES.values() for kind in kinds)

_DRAWS = 8
_TIE = 1e-6


def specificity_queries(
    records: Sequence[Record],
    others: Sequence[Record],
    encoder: Encoder,
    *,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> list[dict[str, Query]]:
    """Return the query of every one of `KINDS` for each record.

    A random question that the unedited model begins to answer like the edit's own, on the edit's
    picture, may be the same question in other words; another is drawn, up to eight times.

    Args:
        records: edits that are measured.
        others: samples to draw pictures, questions and similar samples from, usually the training
            records. The edit's own picture with its own question is never drawn.
        encoder: encodes for the unedited model, which answers and compares.
        seed: of the draws.
        batch_size: queries a forward.
        progress: whether to show bars.

    Raises:
        DataError: if `others` has nothing but the edit itself for some record, or an edit has no
            picture.
    """
    for record in records:
        if record.request.image is None:
            raise DataError(
                f"record {record.index} edits a text; RI, NI and CI need edits of pictures"
            )
    source = random.Random(seed)
    allowed = [_others_of(record, others) for record in records]
    requests = [replace(record.request, target=None) for record in records]
    pool = [replace(other.request, target=None) for other in others]
    pictures = [pool[source.choice(places)] for places in allowed]
    chosen: dict[str, list[Query]] = {
        OTHER_IMAGE: [
            replace(own, image=other.image) for own, other in zip(requests, pictures, strict=True)
        ],
        OTHER_QUESTION: _random_questions(requests, pool, allowed, encoder, source, batch_size),
        NO_IMAGE: [replace(own, image=None) for own in requests],
    }
    measures: Mapping[str, Callable[[Encoder, Sequence[Query], int, bool], Tensor]] = {
        SIMILAR_TEXT: _text_features,
        SIMILAR_IMAGE: _image_features,
    }
    for kind, features in measures.items():
        queries = features(encoder, requests, batch_size, progress)
        keys = features(encoder, pool, batch_size, progress)
        mean = keys.mean(0)
        similarity = functional.normalize(queries - mean, dim=-1) @ functional.normalize(
            keys - mean, dim=-1
        ).T.to(queries.device)
        chosen[kind] = [
            pool[_best(row, places, source)]
            for row, places in zip(similarity, allowed, strict=True)
        ]
    answered = {
        kind: with_own_answers(encoder, queries, batch_size) for kind, queries in chosen.items()
    }
    return [{kind: answered[kind][place] for kind in KINDS} for place in range(len(records))]


def _others_of(record: Record, others: Sequence[Record]) -> list[int]:
    own = (record.request.image, record.request.prompt)
    places = [
        place
        for place, other in enumerate(others)
        if other.request.image is not None and (other.request.image, other.request.prompt) != own
    ]
    # Its own picture under another question is no "other picture", where there is a choice.
    elsewhere = [place for place in places if others[place].request.image != own[0]]
    if not places:
        raise DataError(
            f"there is no other record to compare record {record.index} with; give more records"
        )
    return elsewhere or places


def _random_questions(
    requests: Sequence[Query],
    pool: Sequence[Query],
    allowed: Sequence[Sequence[int]],
    encoder: Encoder,
    source: random.Random,
    batch_size: int,
) -> list[Query]:
    own = first_answer_tokens(encoder, requests, batch_size).tolist()
    drawn = list(requests)
    open_places = list(range(len(requests)))
    for _ in range(_DRAWS):
        for place in open_places:
            other = pool[source.choice(allowed[place])]
            drawn[place] = replace(requests[place], prompt=other.prompt)
        candidates = [drawn[place] for place in open_places]
        tokens = first_answer_tokens(encoder, candidates, batch_size).tolist()
        open_places = [
            place for place, token in zip(open_places, tokens, strict=True) if token == own[place]
        ]
        if not open_places:
            break
    if open_places:
        logger.warning(
            "%d of %d random questions are answered like the edit's own", len(open_places), len(own)
        )
    return drawn


@torch.no_grad()
def _text_features(
    encoder: Encoder, queries: Sequence[Query], _batch_size: int, _progress: bool
) -> Tensor:
    embed = encoder.backbone.model.get_input_embeddings()  # type: ignore[operator]
    rows = []
    for query in queries:
        ids = encoder.tokenizer(query.prompt, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor(ids, device=encoder.backbone.device)
        rows.append(embed(tokens).float().mean(0))
    return torch.stack(rows)


@torch.no_grad()
def _image_features(
    encoder: Encoder, queries: Sequence[Query], batch_size: int, progress: bool
) -> Tensor:
    # Image tokens stand before the question, so their states do not depend on it.
    rows = []
    starts = range(0, len(queries), batch_size)
    for start in tqdm(starts, desc="comparing pictures", unit="batch", disable=not progress):
        batch = encoder.encode(queries[start : start + batch_size], with_target=False)
        backbone = encoder.backbone
        with undisturbed(backbone.model), record_layers(backbone.layers, [0], stop=True) as seen:
            backbone.model(**batch.inputs, use_cache=False)
        hidden = seen[0].float()
        weight = batch.layout.vision.to(hidden)[..., None]  # [b, s, 1]
        rows.append((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))
    return torch.cat(rows)


def _best(similarity: Tensor, places: Sequence[int], source: random.Random) -> int:
    """Return the most similar place; of equals, one at random."""
    values = similarity[torch.tensor(places, device=similarity.device)]
    best: list[int] = (values >= values.amax() - _TIE).nonzero().flatten().tolist()
    return places[source.choice(best)]
