"""What is in an edit's scope and what is not."""

from pathlib import Path

import pytest
from tiny_data import write_data

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.scope import (
    HARD,
    IN_SCOPE,
    NO_IMAGE,
    OTHER_IMAGE,
    OTHER_QUESTION,
    SCOPE,
    scope_queries,
)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    return load_records(write_data(tmp_path), tmp_path)


def test_every_kind_has_a_query_for_each_record(records: list[Record]):
    found = scope_queries(records)
    assert tuple(found) == SCOPE == (*METRICS, *HARD)
    assert set(IN_SCOPE) < set(SCOPE)
    assert all(len(queries) == len(records) for queries in found.values())


def test_hard_queries_share_one_half_with_their_edit_and_have_no_target(records: list[Record]):
    found = scope_queries(records)
    for place, record in enumerate(records):
        image, question, none = (found[kind][place] for kind in HARD)
        assert (OTHER_IMAGE, OTHER_QUESTION, NO_IMAGE) == HARD
        assert image.prompt == record.request.prompt and image.image != record.request.image
        assert question.image == record.request.image
        assert question.prompt != record.request.prompt
        assert none.prompt == record.request.prompt and none.image is None
        assert all(query.target is None for query in (image, question, none))


def test_the_seed_decides_the_other_record(records: list[Record]):
    assert scope_queries(records, seed=1) == scope_queries(records, seed=1)
    others = {tuple(q.image for q in scope_queries(records, seed=s)[OTHER_IMAGE]) for s in range(5)}
    assert len(others) > 1


def test_a_single_record_is_its_own_partner(records: list[Record]):
    found = scope_queries(records[:1])
    assert found[OTHER_IMAGE][0].image == records[0].request.image
