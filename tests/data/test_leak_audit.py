"""Leak audit: what is shared with training is counted record by record and named."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_data
from tiny_editors import picture

from easyedit_dualedit.data.leak_audit import audit
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.model.inputs import Query

EDIT_PAIR = "edits (reliability) with picture and question of an edit of training"
EDIT = "edits (reliability) with picture, question and target of an edit of training"
EDIT_TARGET = "edits (reliability) with the target of an edit of training"
EDIT_WORDS = "edits (reliability) whose target has no word new to targets of training"
EDIT_ANY_PAIR = "edits (reliability) with picture and question of any query of training"
EDIT_PICTURE = "edits (reliability) with the picture of an edit of training"
EDIT_REPHRASED = "edits (reliability) with a rephrased picture of training"
EDIT_LOCALITY = "edits (reliability) with a locality picture of training"
TEXT_PAIR = "text-generality queries with picture and question of any query of training"
IMAGE_PAIR = "image-generality queries with picture and question of any query of training"
IMAGE_PICTURE = "image-generality queries with the picture of any query of training"
LOCALITY_PAIR = (
    "image-locality queries with picture and question of an image-locality query of training"
)
LOCALITY_ANY_PAIR = "image-locality queries with picture and question of any query of training"
LOCALITY_PICTURE = "image-locality queries with the picture of any query of training"
QUESTION = "text-locality queries with the question of a text-locality query of training"
PORTABILITY = "portability queries with picture and question of any query of training"
ALL = (
    EDIT_PAIR,
    EDIT,
    EDIT_TARGET,
    EDIT_WORDS,
    EDIT_ANY_PAIR,
    EDIT_PICTURE,
    EDIT_REPHRASED,
    EDIT_LOCALITY,
    TEXT_PAIR,
    IMAGE_PAIR,
    IMAGE_PICTURE,
    LOCALITY_PAIR,
    LOCALITY_ANY_PAIR,
    LOCALITY_PICTURE,
    QUESTION,
)


def item(name: str, **changes: Any) -> dict[str, Any]:
    """Return an item that shares nothing with an item of another name."""
    item = {
        "src": f"What is {name}?",
        "pred": "no",
        "rephrase": f"Name {name}.",
        "alt": f"the-answer-{name}",
        "image": f"{name}.jpg",
        "image_rephrase": f"again/{name}.png",
        "loc": f"nq question: who is {name}",
        "loc_ans": "nobody",
        "m_loc": f"other/{name}.jpg",
        "m_loc_q": f"Where is {name}?",
        "m_loc_a": "here",
    }
    return item | changes


def records_of(
    path: Path, *items: dict[str, Any], images: str = "images", template: str = "{}"
) -> list[Record]:
    path.write_text(json.dumps(items), encoding="utf-8")
    return load_records(path, path.parent / images, template=template, check_pictures=False)


def counts(evaluated: Sequence[Record], trained: Sequence[Record]) -> dict[str, tuple[int, int]]:
    """Return found and of, of each finding that found something."""
    found = audit(evaluated, trained).findings
    return {finding.what: (finding.found, finding.of) for finding in found if finding.found}


@pytest.mark.parametrize(
    ("evaluated", "expected"),
    [
        ({}, set()),
        ({"image": "t.jpg"}, {EDIT_PICTURE}),
        ({"image": "again/t.png"}, {EDIT_REPHRASED}),
        ({"image": "other/t.jpg"}, {EDIT_LOCALITY}),
        ({"src": "What is t?"}, set()),
        (
            {"image": "t.jpg", "src": " what is T?\n"},
            {EDIT_PICTURE, EDIT_PAIR, EDIT_ANY_PAIR},
        ),
        (
            {"image": "t.jpg", "src": "What is t?", "alt": "The-answer-t\n"},
            {EDIT_PICTURE, EDIT_PAIR, EDIT_ANY_PAIR, EDIT, EDIT_TARGET, EDIT_WORDS},
        ),
        ({"alt": " THE-ANSWER-T"}, {EDIT_TARGET, EDIT_WORDS}),
        ({"alt": "the-answer-t the-answer-u"}, {EDIT_WORDS}),
        ({"alt": "the-answer-t or u"}, set()),
        ({"image": "t.jpg", "src": "Name t."}, {EDIT_PICTURE, EDIT_ANY_PAIR}),
        ({"image": "other/t.jpg", "src": "Where is t?"}, {EDIT_LOCALITY, EDIT_ANY_PAIR}),
        ({"image": "t.jpg", "rephrase": "What is t?"}, {EDIT_PICTURE, TEXT_PAIR}),
        ({"image_rephrase": "t.jpg"}, {IMAGE_PICTURE}),
        (
            {"image_rephrase": "again/t.png", "src": "What is t?"},
            {IMAGE_PICTURE, IMAGE_PAIR},
        ),
        ({"m_loc": "other/t.jpg"}, {LOCALITY_PICTURE}),
        (
            {"m_loc": "other/t.jpg", "m_loc_q": "Where is t?"},
            {LOCALITY_PICTURE, LOCALITY_PAIR, LOCALITY_ANY_PAIR},
        ),
        ({"m_loc": "t.jpg", "m_loc_q": "What is t?"}, {LOCALITY_PICTURE, LOCALITY_ANY_PAIR}),
        ({"loc": "nq question: who is t"}, {QUESTION}),
        ({"loc": "Who is t"}, {QUESTION}),
        ({"loc": "What is t?"}, set()),
    ],
)
def test_each_thing_shared_is_one_finding(
    tmp_path: Path, evaluated: dict[str, Any], expected: set[str]
):
    first = records_of(tmp_path / "eval.json", item("e", **evaluated))
    second = records_of(tmp_path / "train.json", item("u"), item("t"))
    found = audit(first, second)
    assert tuple(finding.what for finding in found.findings) == ALL
    assert counts(first, second) == dict.fromkeys(expected, (1, 1))


def test_every_evaluated_record_counts_and_training_counts_no_more_than_once(tmp_path: Path):
    evaluated = records_of(
        tmp_path / "eval.json",
        *(item(f"e{number}", image="t.jpg") for number in range(3)),
        item("e3", image="t.jpg"),
        item("e4"),
    )
    trained = records_of(tmp_path / "train.json", item("t"), item("t2", image="t.jpg"))
    assert counts(evaluated, trained) == {EDIT_PICTURE: (4, 5)}


def test_a_finding_has_its_share_and_at_most_three_examples_with_places(tmp_path: Path):
    evaluated = records_of(
        tmp_path / "eval.json",
        item("e"),
        *(item(f"e{number}", m_loc="t.jpg", m_loc_q="What is t?") for number in range(4)),
    )
    trained = records_of(tmp_path / "train.json", item("u"), item("v"), item("t"), item("t"))
    found = {finding.what: finding for finding in audit(evaluated, trained).findings}
    finding = found[LOCALITY_ANY_PAIR]
    assert (finding.found, finding.of, finding.percent) == (4, 5, 80.0)
    assert finding.examples == tuple(
        f"record {index}: t.jpg: 'What is t?' (training record 2)" for index in (1, 2, 3)
    )
    assert found[EDIT_PAIR].percent == 0.0
    assert found[EDIT_PAIR].examples == ()
    edit = item("t", alt=" The-Answer-T")
    same = audit(records_of(tmp_path / "same.json", edit), trained).findings[ALL.index(EDIT)]
    assert same.examples == ("record 0: t.jpg: 'What is t?' -> 'The-Answer-T' (training record 2)",)


def test_targets_and_words_are_found_with_examples(tmp_path: Path):
    evaluated = records_of(
        tmp_path / "eval.json",
        item("e", alt="a kite"),
        item("f", alt="a red kite"),
        item("g", alt="red"),
    )
    trained = records_of(tmp_path / "train.json", item("t"), item("u", alt="A red kite"))
    found = {finding.what: finding for finding in audit(evaluated, trained).findings}
    assert (found[EDIT_TARGET].found, found[EDIT_TARGET].of) == (1, 3)
    assert found[EDIT_TARGET].examples == ("record 1: 'a red kite' (training record 1)",)
    assert (found[EDIT_WORDS].found, found[EDIT_WORDS].of) == (3, 3)
    assert found[EDIT_WORDS].examples[0] == "record 0: 'a kite'"


def test_portability_is_audited_where_there_is_any(tmp_path: Path):
    ported = dict.fromkeys(("port_edit_q", "port_edit_a", "port_q", "port_a"), "What is t?")
    other = dict.fromkeys(ported, "something else")
    evaluated = records_of(
        tmp_path / "eval.json",
        item("e", image="t.jpg", port_new=[other, ported, ported]),
        item("f", image="t.jpg", port_new=[other]),
        item("g", image="t.jpg"),
    )
    trained = records_of(tmp_path / "train.json", item("t"))
    found = audit(evaluated, trained).findings
    assert tuple(finding.what for finding in found) == (*ALL, PORTABILITY)
    assert (found[-1].found, found[-1].of) == (1, 2)


def test_the_template_does_not_matter(tmp_path: Path):
    same = (item("t"), item("u"))
    evaluated = records_of(tmp_path / "eval.json", *same, template="Question: {} Answer:")
    trained = records_of(tmp_path / "train.json", *same)
    everything = set(ALL) - {EDIT_REPHRASED, EDIT_LOCALITY}
    assert counts(evaluated, trained) == dict.fromkeys(everything, (2, 2))


def test_nothing_against_nothing(tmp_path: Path):
    some = records_of(tmp_path / "some.json", item("t"))
    assert counts(some, []) == {}
    found = audit([], some)
    assert (found.evaluated, found.trained) == (0, 1)
    assert {(finding.found, finding.of, finding.percent) for finding in found.findings} == {
        (0, 0, 0.0)
    }


# ---- folders of pictures -----------------------------------------------------------------------


def test_one_name_in_two_folders_is_one_picture_if_it_is_not_there(tmp_path: Path):
    evaluated = records_of(tmp_path / "eval.json", item("e", image="./t.jpg"), images="one")
    trained = records_of(tmp_path / "train.json", item("t"), images="two")
    assert counts(evaluated, trained) == {EDIT_PICTURE: (1, 1)}


def test_one_name_in_two_folders_with_other_content_is_another_picture(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    first = load_records(write_data(one, 3), one)
    shutil.copytree(one, two)
    for name, colour in (("0.png", "white"), ("1_other.png", "black")):
        picture(colour).save(two / name)
    second = load_records(two / "data.json", two)
    assert counts(first, first)[EDIT_PAIR] == (3, 3)
    found = counts(first, second)
    assert found[EDIT_PAIR] == found[EDIT] == found[EDIT_PICTURE] == (2, 3)
    assert found[LOCALITY_PAIR] == (2, 3)
    assert found[QUESTION] == (3, 3)


def test_pictures_that_are_no_files_compare_by_content():
    query = Query("What?", picture("red"), "blue")
    record = Record(0, *[query] * 5, prediction="red")
    other = replace(query, image=picture("green"))
    assert EDIT_PAIR in counts([record], [replace(record, request=replace(query))])
    assert EDIT_PAIR not in counts([record], [replace(record, request=other)])
    assert EDIT_ANY_PAIR in counts([record], [replace(record, request=other)])
    both = replace(record, request=replace(query, image=(picture("red"), picture("green"))))
    assert EDIT_PAIR not in counts([record], [both])
    assert EDIT_PICTURE in counts([record], [both])


# ---- how it is shown ---------------------------------------------------------------------------


def test_an_audit_is_plain_json(tmp_path: Path):
    records = records_of(tmp_path / "eval.json", item("e"), item("f"))
    plain = audit(records, records[:1]).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert set(plain) == {"evaluated", "trained", "findings"}
    assert (plain["evaluated"], plain["trained"]) == (2, 1)
    assert plain["findings"][0] == {
        "what": EDIT_PAIR,
        "found": 1,
        "of": 2,
        "percent": 50.0,
        "examples": ["record 0: e.jpg: 'What is e?' (training record 0)"],
    }
