"""The published files of MMEdit and VLKEB, where MMEDIT_DATA and VLKEB_DATA name their folders.

Every count is computed here again from the bare JSON, as plainly as can be.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from easyedit_dualedit.data.leak_audit import Audit, audit
from easyedit_dualedit.data.quirks import quirks
from easyedit_dualedit.data.records import (
    PICTURES,
    Record,
    load_records,
    problems_of,
)
from easyedit_dualedit.data.stand_ins import draw_stand_ins, picture_names
from easyedit_dualedit.errors import DataError

COUNTS = {
    "vqa_eval.json": 2093,
    "vqa_train.json": 6345,
    "caption_eval_edit.json": 1000,
    "caption_train_edit.json": 2849,
    "eval_edit_onehop.json": 1278,
}
MMEDIT = tuple(COUNTS)[:4]
VLKEB = "eval_edit_onehop.json"

_READ: dict[Path, tuple[list[dict[str, Any]], list[Record]]] = {}


def published(name: str) -> Path:
    """Return the path of a published file, or skip the test."""
    variable = "VLKEB_DATA" if name == VLKEB else "MMEDIT_DATA"
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of published files")
    path = Path(folder, name)
    if not path.is_file():
        pytest.skip(f"no {name} in the folder that {variable} names")
    return path


def read(name: str) -> tuple[list[dict[str, Any]], list[Record]]:
    """Return the items of a published file, and its records without pictures."""
    path = published(name)
    if path not in _READ:
        items = json.loads(path.read_text(encoding="utf-8"))
        _READ[path] = items, load_records(path, Path("images"), check_pictures=False)
    return _READ[path]


@pytest.mark.parametrize("name", COUNTS)
def test_every_record_is_read_as_it_stands(name: str):
    items, records = read(name)
    assert len(items) == len(records) == COUNTS[name]
    folder = Path("images")
    for index, (item, record) in enumerate(zip(items, records, strict=True)):
        assert record.index == index
        assert record.prediction == item["pred"].strip()
        assert [(query.prompt, query.image, query.target) for query in record.queries] == [
            (item["src"].strip(), folder / item["image"], item["alt"]),
            (item["rephrase"].strip(), folder / item["image"], item["alt"]),
            (item["src"].strip(), folder / item["image_rephrase"], item["alt"]),
            (item["loc"].strip(), None, item["loc_ans"]),
            (item["m_loc_q"].strip(), folder / item["m_loc"], item["m_loc_a"]),
        ]
        assert [(query.prompt, query.image, query.target) for query in record.portability] == [
            (entry["port_q"].strip(), folder / item["image"], entry["port_a"])
            for entry in item.get("port_new", [])
        ]


def test_every_record_of_vlkeb_has_a_portability_question_and_none_of_mmedit():
    _, records = read(VLKEB)
    assert [len(record.portability) for record in records] == [1] * 1278
    _, records = read("vqa_eval.json")
    assert not any(record.portability for record in records)


@pytest.mark.parametrize("name", COUNTS)
def test_nothing_is_wrong_with_them_but_that_pictures_are_missing(name: str, tmp_path: Path):
    path = published(name)
    assert problems_of(path, tmp_path, check_pictures=False) == []
    found = problems_of(path, tmp_path)
    assert len(found) == len(PICTURES) * COUNTS[name]
    assert all("no picture at" in line for line in found)
    with pytest.raises(DataError, match=rf"\(and {len(found) - 5} more\)$"):
        load_records(path, tmp_path)


@pytest.mark.parametrize("name", ["caption_eval_edit.json", VLKEB])
def test_a_whole_file_passes_with_stand_ins(name: str, tmp_path: Path):
    path = published(name)
    items, _ = read(name)
    names = picture_names(path)
    assert set(names) == {item[field] for item in items for field in PICTURES}
    assert draw_stand_ins(names, tmp_path, size=8) == len(names) == len(set(names))
    assert problems_of(path, tmp_path) == []
    assert len(load_records(path, tmp_path)) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_fifty_records_are_read_with_stand_ins(name: str, tmp_path: Path):
    path = published(name)
    draw_stand_ins(picture_names(path, limit=50), tmp_path)
    records = load_records(path, tmp_path, limit=50)
    assert len(records) == 50
    for query in (query for record in records for query in record.queries):
        for place in query.pictures:
            with Image.open(place) as image:
                assert image.convert("RGB").size == (48, 48)


@pytest.mark.parametrize("name", COUNTS)
def test_quirks_are_counted_as_a_plain_count_does(name: str):
    items, records = read(name)
    ported = [
        [text for entry in item.get("port_new", []) for text in entry.values()] for item in items
    ]
    edits = Counter((item["image"], item["src"].strip()) for item in items)
    whole = Counter((item["image"], item["src"].strip(), item["alt"].strip()) for item in items)
    answers = ("alt", "loc_ans", "m_loc_a")
    asked = ("src", "rephrase", "loc", "m_loc_q")
    # No answer or question about portability in these files has a quirk but text beyond ASCII.
    assert not any("\n" in text or text != text.strip() for texts in ported for text in texts)
    assert quirks(records) == {
        "text-locality prompt with the prefix 'nq question: '": sum(
            item["loc"].startswith("nq question: ") for item in items
        ),
        "newline in a target": sum(any("\n" in item[a] for a in answers) for item in items),
        "newline in a prompt": sum(any("\n" in item[q] for q in asked) for item in items),
        "white space around a target": sum(
            any(item[a][0].isspace() or item[a][-1].isspace() for a in answers) for item in items
        ),
        "rephrase equal to its source": sum(item["rephrase"] == item["src"] for item in items),
        "target equal to the prediction": sum(
            item["alt"].strip().lower() == item["pred"].strip().lower() for item in items
        ),
        "text beyond ASCII": sum(
            any(ord(letter) > 127 for q in (*asked, *answers, "pred") for letter in item[q])
            or any(ord(letter) > 127 for e in item.get("port_new", []) for letter in e["port_q"])
            or any(ord(letter) > 127 for e in item.get("port_new", []) for letter in e["port_a"])
            for item in items
        ),
        "rephrased picture equal to the edit's": sum(
            item["image_rephrase"] == item["image"] for item in items
        ),
        "picture and prompt of another record, different target": sum(
            edits[item["image"], item["src"].strip()]
            > whole[item["image"], item["src"].strip(), item["alt"].strip()]
            for item in items
        ),
        "picture, prompt and target of another record": sum(
            whole[item["image"], item["src"].strip(), item["alt"].strip()] > 1 for item in items
        ),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vqa_eval.json", (2093, 0, 13, 0, 45, 4, 53, 0, 0, 2)),
        ("vqa_train.json", (6345, 5, 15, 0, 117, 6, 216, 0, 0, 4)),
        ("caption_eval_edit.json", (1000, 2, 0, 144, 0, 0, 29, 0, 0, 0)),
        ("caption_train_edit.json", (2849, 12, 0, 413, 0, 0, 96, 0, 0, 0)),
        (VLKEB, (0, 1, 0, 0, 0, 0, 54, 0, 0, 0)),
    ],
)
def test_the_quirks_of_the_files_as_they_were_published(name: str, expected: tuple[int, ...]):
    _, records = read(name)
    assert tuple(quirks(records).values()) == expected


# ---- what evaluation shares with training --------------------------------------------------------


def shared(found: Audit) -> dict[str, tuple[int, int]]:
    return {
        finding.what: (finding.found, finding.of) for finding in found.findings if finding.found
    }


PAIRS = "image-locality queries with picture and question of an image-locality query of training"
ANY_PAIRS = "image-locality queries with picture and question of any query of training"
LOCALITY_PICTURES = "image-locality queries with the picture of any query of training"
EDIT_PICTURES = "edits (reliability) with the picture of an edit of training"
EDIT_LOCALITY = "edits (reliability) with a locality picture of training"
TARGETS = "edits (reliability) with the target of an edit of training"
WORDS = "edits (reliability) whose target has no word new to targets of training"
EDIT_PAIRS = "edits (reliability) with picture and question of any query of training"
TEXT_PAIRS = "text-generality queries with picture and question of any query of training"
QUESTIONS = "text-locality queries with the question of a text-locality query of training"


def test_all_image_locality_pairs_of_e_vqa_are_trained_on():
    items, evaluated = read("vqa_eval.json")
    training, trained = read("vqa_train.json")
    found = audit(evaluated, trained)
    assert shared(found) == {
        TARGETS: (1434, 2093),
        WORDS: (1640, 2093),
        EDIT_PAIRS: (2, 2093),
        EDIT_PICTURES: (1380, 2093),
        EDIT_LOCALITY: (232, 2093),
        TEXT_PAIRS: (11, 2093),
        PAIRS: (2093, 2093),
        ANY_PAIRS: (2093, 2093),
        LOCALITY_PICTURES: (2093, 2093),
    }
    pairs = {(item["m_loc"], item["m_loc_q"]) for item in training}
    assert all((item["m_loc"], item["m_loc_q"]) in pairs for item in items)
    pictures = {item["image"] for item in training}
    assert sum(item["image"] in pictures for item in items) == 1380
    share = {finding.what: finding.percent for finding in found.findings}
    assert f"{share[EDIT_PICTURES]:.1f}" == "65.9"
    assert share[PAIRS] == 100.0
    targets = {item["alt"].strip().lower() for item in training}
    words = {word for target in targets for word in target.split()}
    asked = [item["alt"].strip().lower() for item in items]
    assert sum(target in targets for target in asked) == 1434
    assert sum(set(target.split()) <= words for target in asked) == 1640
    # 31.5 % ask for a target never seen, 21.6 % for a word never seen.
    assert (f"{100 - share[TARGETS]:.1f}", f"{100 - share[WORDS]:.1f}") == ("31.5", "21.6")


def test_all_image_locality_pairs_of_e_ic_are_trained_on():
    items, evaluated = read("caption_eval_edit.json")
    training, trained = read("caption_train_edit.json")
    assert shared(audit(evaluated, trained)) == {
        TARGETS: (2, 1000),
        WORDS: (576, 1000),
        EDIT_LOCALITY: (81, 1000),
        PAIRS: (1000, 1000),
        ANY_PAIRS: (1000, 1000),
        LOCALITY_PICTURES: (1000, 1000),
    }
    pairs = {(item["m_loc"], item["m_loc_q"]) for item in training}
    assert all((item["m_loc"], item["m_loc_q"]) in pairs for item in items)


def test_vlkeb_shares_text_locality_questions_with_e_vqa():
    items, evaluated = read(VLKEB)
    training, trained = read("vqa_train.json")
    assert shared(audit(evaluated, trained)) == {
        TARGETS: (8, 1278),
        WORDS: (42, 1278),
        QUESTIONS: (959, 1278),
    }
    questions = {item["loc"].split(": ", 1)[1].lower() for item in training}
    assert sum(item["loc"].lower() in questions for item in items) == 959
