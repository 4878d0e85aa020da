"""What is in an edit's scope and what is not: the queries that teach and test a gate."""

import random
from collections.abc import Sequence
from dataclasses import replace

from easyedit_dualedit.data.records import METRICS, Record, metric_queries
from easyedit_dualedit.model.inputs import Query

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


def partners_of(count: int, *, seed: int = 0) -> list[int]:
    """Return for each of `count` records the place of the other one that its hard queries use."""
    source = random.Random(seed)
    return [
        (place + source.randrange(1, count)) % count if count > 1 else place
        for place in range(count)
    ]


def scope_queries(records: Sequence[Record], *, seed: int = 0) -> dict[str, list[Query]]:
    """Return every kind of query of `SCOPE` for each record.

    The other record of a hard query is drawn at random; it is the record itself only if there is
    no other. Hard queries have no target, since there is no right answer to them.
    """
    partners = [records[place] for place in partners_of(len(records), seed=seed)]
    queries = {metric: metric_queries(records, metric) for metric in METRICS}
    requests = [replace(record.request, target=None) for record in records]
    pairs = list(zip(requests, partners, strict=True))
    queries[OTHER_IMAGE] = [replace(own, image=other.request.image) for own, other in pairs]
    queries[OTHER_QUESTION] = [replace(own, prompt=other.request.prompt) for own, other in pairs]
    queries[NO_IMAGE] = [replace(own, image=None) for own in requests]
    return queries


def wording_of(query: Query) -> str:
    """Return what tells the wording of a query from others: neither case nor white space does."""
    return " ".join(query.prompt.split()).casefold()
