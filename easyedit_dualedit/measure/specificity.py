"""Queries that come close to an edit and are none of its business: RI, NI and CI.

The locality queries of a record share nothing with its edit, which hides edits that fire on half of
it ("transient blindness", 2511.13243). These share the text, the picture, or come from the sample
that is most like the edit. None has a right answer: what counts is that the model says the same
before and after, so each gets the unedited model's own answer as its target.
"""

import logging
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import NO_IMAGE, OTHER_IMAGE, OTHER_QUESTION, wording_of
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.sample_features import SampleFeatures
from easyedit_dualedit.model.answers import first_answer_tokens, with_own_answers
from easyedit_dualedit.model.encoder import Encoder
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

TOGETHER = 16
"""Edits whose queries are drawn together."""

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
    picture, may be the same question in other words; another is drawn, up to eight times. Where
    `others` ask nothing but what the edit asks (captions), it has no random question.

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
    require_drawable(records, others)
    pool = [replace(other.request, target=None) for other in others]
    features = SampleFeatures.of(encoder, pool, batch_size, progress=progress)
    draws = Draws(encoder, others, features, seed, batch_size)
    drawn: list[dict[str, Query]] = []
    with tqdm(total=len(records), desc="close queries", unit="edit", disable=not progress) as bar:
        for start in range(0, len(records), TOGETHER):
            chosen = records[start : start + TOGETHER]
            drawn += draws.of(chosen)
            bar.update(len(chosen))
    return drawn


def require_drawable(records: Sequence[Record], others: Sequence[Record]) -> None:
    """Refuse edits that have no queries of specificity.

    Raises:
        DataError: if `others` has nothing but the edit itself for some record, or an edit has no
            picture.
    """
    for record in records:
        if record.request.image is None:
            raise DataError(
                f"record {record.index} edits a text; RI, NI and CI need edits of pictures"
            )
        if not any(_is_another(record, other) for other in others):
            raise DataError(
                f"there is no other record to compare record {record.index} with; give more records"
            )


@dataclass(frozen=True)
class Draws:
    """Draws the queries of specificity; those of an edit depend on the seed and the edit alone."""

    encoder: Encoder
    others: Sequence[Record]
    features: SampleFeatures
    """Of the requests of `others`."""
    seed: int = 0
    batch_size: int = 32

    def of(self, records: Sequence[Record]) -> list[dict[str, Query]]:
        """Return the queries of each of some records, of all `KINDS` that it has."""
        requests = [replace(record.request, target=None) for record in records]
        pool = [replace(other.request, target=None) for other in self.others]
        allowed = [_others_of(record, self.others) for record in records]
        # Of each record's own, so that no draw depends on which records it is made with.
        sources = [random.Random(f"{self.seed} {record.index}") for record in records]
        pictures = [
            pool[source.choice(places)] for source, places in zip(sources, allowed, strict=True)
        ]
        own_questions = [{wording_of(query) for query in _in_scope(record)} for record in records]
        questions = _Questions(self.encoder, requests, own_questions, self.batch_size)
        chosen: dict[str, Sequence[Query | None]] = {
            OTHER_IMAGE: [
                replace(own, image=other.image)
                for own, other in zip(requests, pictures, strict=True)
            ],
            OTHER_QUESTION: questions.drawn(
                [[pool[place].prompt for place in places] for places in allowed], sources
            ),
            NO_IMAGE: [replace(own, image=None) for own in requests],
        }
        own = self.features.beside(self.encoder, requests, self.batch_size)
        for kind, similarity in (
            (SIMILAR_TEXT, _similarity(own.text, self.features.text)),
            (SIMILAR_IMAGE, _similarity(own.image, self.features.image)),
        ):
            rows = zip(similarity, allowed, sources, strict=True)
            chosen[kind] = [pool[_best(*row)] for row in rows]
        drawn = [{kind: chosen[kind][place] for kind in KINDS} for place in range(len(records))]
        return self._answered(
            [{kind: query for kind, query in row.items() if query is not None} for row in drawn]
        )

    def _answered(self, drawn: Sequence[Mapping[str, Query]]) -> list[dict[str, Query]]:
        """Return the queries with the unedited model's answers, those with pictures apart."""
        answered = [dict(queries) for queries in drawn]
        every = [(place, kind) for place, queries in enumerate(drawn) for kind in queries]
        for part in (
            [one for one in every if one[1] != NO_IMAGE],
            [one for one in every if one[1] == NO_IMAGE],
        ):
            queries = [drawn[place][kind] for place, kind in part]
            made = with_own_answers(self.encoder, queries, self.batch_size)
            for (place, kind), query in zip(part, made, strict=True):
                answered[place][kind] = query
        return answered


def _is_another(record: Record, other: Record) -> bool:
    # What the edit is to answer, its rephrases among it, is never out of scope.
    own = [(query.image, query.prompt) for query in _in_scope(record)]
    return other.request.image is not None and (
        (other.request.image, other.request.prompt) not in own
    )


def _others_of(record: Record, others: Sequence[Record]) -> list[int]:
    places = [place for place, other in enumerate(others) if _is_another(record, other)]
    # Its own pictures under another question are no "other picture", where there is a choice.
    own = [query.image for query in _in_scope(record)]
    elsewhere = [place for place in places if others[place].request.image not in own]
    return elsewhere or places


def _in_scope(record: Record) -> tuple[Query, Query, Query]:
    return record.request, record.text_rephrase, record.image_rephrase


class _Questions:
    """Draws a question about the picture of each request that is answered otherwise."""

    def __init__(
        self,
        encoder: Encoder,
        requests: Sequence[Query],
        in_scope: Sequence[Set[str]],
        batch_size: int,
    ):
        self._encoder = encoder
        self._requests = requests
        self._in_scope = in_scope
        self._batch_size = batch_size
        self._first: dict[tuple[int, str], int] = {}
        """First token of the answer to each question about the picture of a request."""

    def drawn(
        self, prompts: Sequence[Sequence[str]], sources: Sequence[random.Random]
    ) -> list[Query | None]:
        own = [request.prompt for request in self._requests]
        open_places = list(range(len(own)))
        drawn = list(own)
        self._ask([(place, own[place]) for place in open_places])
        for _ in range(_DRAWS):
            for place in open_places:
                drawn[place] = sources[place].choice(prompts[place])
            self._ask([(place, drawn[place]) for place in open_places])
            open_places = [
                place
                for place in open_places
                if self._first[place, drawn[place]] == self._first[place, own[place]]
                or self._is_own(place, drawn[place])
            ]
            if not open_places:
                break
        for place in open_places:
            if self._is_own(place, drawn[place]):
                others = [each for each in prompts[place] if not self._is_own(place, each)]
                drawn[place] = sources[place].choice(others) if others else own[place]
        found = [
            None if prompt == request.prompt else replace(request, prompt=prompt)
            for request, prompt in zip(self._requests, drawn, strict=True)
        ]
        alike = sum(found[place] is not None for place in open_places)
        if alike:
            logger.warning(
                "%d of %d random questions are answered like the edit's own", alike, len(own)
            )
        if None in found:
            logger.warning(
                "%d of %d edits have no random question: all samples ask what the edit asks",
                found.count(None),
                len(own),
            )
        return found

    def _is_own(self, place: int, prompt: str) -> bool:
        """Return whether the edit is to answer a question about its picture."""
        return wording_of(Query(prompt)) in self._in_scope[place]

    def _ask(self, questions: Sequence[tuple[int, str]]) -> None:
        new = [one for one in questions if one not in self._first]
        if new:
            queries = [replace(self._requests[place], prompt=prompt) for place, prompt in new]
            tokens = first_answer_tokens(self._encoder, queries, self._batch_size)
            self._first |= dict(zip(new, tokens.tolist(), strict=True))


def _similarity(own: Tensor, others: Tensor) -> Tensor:
    """Return the cosine of each pair, [n, m], once the mean of the others is taken from both."""
    mean = others.mean(0)
    return functional.normalize(own - mean, dim=-1) @ functional.normalize(others - mean, dim=-1).T


def _best(similarity: Tensor, places: Sequence[int], source: random.Random) -> int:
    """Return the most similar place; of equals, one at random."""
    values = similarity[torch.tensor(places)]
    best: list[int] = (values >= values.amax() - _TIE).nonzero().flatten().tolist()
    return places[source.choice(best)]
