"""ComprehendEdit's records under the names of ours, and the samples nearest to them."""

import json
from pathlib import Path

import pytest
from tiny_comprehend_edit import comprehend_edit_folder

from easyedit_dualedit.data.records import load_records, problems_of
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return comprehend_edit_folder(tmp_path)


def test_a_record_has_the_queries_of_ours(folder: Path) -> None:
    first = load_records(folder / "ComprehendEdit_train.json", folder)[0]
    picture = folder / "GQA" / "images" / "0.jpg"
    assert first.request == Query("What colour is thing 0?", picture, "green")
    assert first.text_rephrase == Query("Thing 0 has which colour?", picture, "green")
    assert first.image_rephrase == first.request
    assert first.text_locality == Query("where is the star", None, "top left")
    other = folder / "GQA" / "images" / "2.jpg"
    assert first.image_locality == Query("How many squares are there?", other, "three")
    assert first.nearest is None


def test_records_without_an_answer_are_left_out(folder: Path) -> None:
    path = folder / "ComprehendEdit_test.json"
    assert [record.index for record in load_records(path, folder)] == [0, 1, 3]
    assert [record.index for record in load_records(path, folder, limit=2)] == [0, 1]


def test_nearest_samples_are_looked_up_in_both_files(folder: Path) -> None:
    path = folder / "ComprehendEdit_test.json"
    near = load_records(path, folder, limit=1)[0].nearest
    assert near is not None
    # Of 1, 2 and 3, by picture and by question, 2 has no answer; it is beyond the limit, too.
    asked = [query.prompt for query in near.wrong]
    assert asked == ["What colour is thing 1?", "What colour is thing 3?"] * 2
    assert [query.target for query in near.wrong] == ["blue", "red"] * 2
    # There is no sample 99.
    assert [query.prompt for query in near.right] == ["Is it red?"] * 2
    (folder / "ComprehendEdit_ori_right.json").unlink()
    near = load_records(path, folder, limit=1)[0].nearest
    assert near is not None and near.right == ()


def test_problems_have_the_names_of_the_file(folder: Path) -> None:
    path = folder / "ComprehendEdit_train.json"
    items = json.loads(path.read_text(encoding="utf-8"))
    del items[0]["rephrase"]
    items[1]["answer"] = 3
    items[3]["image"] = "none.jpg"
    path.write_text(json.dumps(items), encoding="utf-8")
    found = problems_of(path, folder)
    assert found[:2] == ["record 0 has no field rephrase", "record 1, field answer: 3 is no text"]
    assert len(found) == 3 and "record 3, field image: no picture at" in found[2]
    with pytest.raises(DataError, match="record 1, field answer"):
        load_records(path, folder)


def test_nearest_samples_may_lie_outside_where_that_is_allowed(folder: Path) -> None:
    path = folder / "ComprehendEdit_test.json"
    items = json.loads(path.read_text(encoding="utf-8"))
    for item in items:
        item["image"] = str(folder / item["image"])
    path.write_text(json.dumps(items), encoding="utf-8")
    near = load_records(path, folder, limit=1, allow_outside=True)[0].nearest
    assert near is not None and len(near.wrong) == 4
    assert all(query.image and Path(str(query.image)).is_file() for query in near.wrong)
