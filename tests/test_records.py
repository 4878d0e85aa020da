"""Records: every mistake in a data file is named by place before anything runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import picture
from test_training import write_data

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.records import FIELDS, METRICS, load_records, queries_of

PICTURES = ("image", "image_rephrase", "m_loc")
MMEDIT_FILES = {
    "vqa_eval.json": 2093,
    "vqa_train.json": 6345,
    "caption_eval_edit.json": 1000,
    "caption_train_edit.json": 2849,
}


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[list[Any]], Any]], Path]:
    """Return a function that writes the data file again after a change of its items."""

    def change(action: Callable[[list[Any]], Any]) -> Path:
        path = write_data(tmp_path)
        items = json.loads(path.read_text(encoding="utf-8"))
        action(items)
        path.write_text(json.dumps(items), encoding="utf-8")
        return path

    return change


def refused(path: Path, images: Path, **options: Any) -> str:
    """Return the one line in which the records of a file are refused."""
    with pytest.raises(DataError) as caught:
        load_records(path, images, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_each_field_becomes_the_query_that_it_is_for(tmp_path: Path):
    record = load_records(write_data(tmp_path), tmp_path)[5]
    assert record.index == 5
    assert record.prediction == "green"
    got = [
        (query.prompt, None if query.image is None else Path(query.image).name, query.target)
        for query in record.queries
    ]
    assert got == [
        ("What colour is circle 5?", "5.png", "blue"),
        ("Circle 5 is which colour?", "5.png", "blue"),
        ("What colour is circle 5?", "5.png", "blue"),
        ("nq question: where is the star 5", None, "top left"),
        ("How many squares are there?", "5_other.png", "three"),
    ]


def test_the_rephrased_image_is_that_of_its_own_field(changed: Any, tmp_path: Path):
    path = changed(lambda items: items[0].update(image_rephrase="3_other.png"))
    record = load_records(path, tmp_path)[0]
    assert [Path(str(q.image)).name for q in record.queries[:3]] == [
        "0.png",
        "0.png",
        "3_other.png",
    ]


def test_queries_of_keeps_the_order_of_the_records(tmp_path: Path):
    records = load_records(write_data(tmp_path), tmp_path)
    assert [query.prompt for query in queries_of(records[::-1], "text_generality")] == [
        f"Circle {index} is which colour?" for index in range(7, -1, -1)
    ]
    for place, metric in enumerate(METRICS):
        assert queries_of(records, metric) == [record.queries[place] for record in records]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_with_its_record(changed: Any, tmp_path: Path, field: str):
    message = refused(changed(lambda items: items[6].pop(field)), tmp_path)
    assert f"record 6 has no field {field}" in message
    assert message.count("record") == 1


@pytest.mark.parametrize("value", [None, 3, ["text"], {"text": "a"}, True])
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_no_text_is_named(changed: Any, tmp_path: Path, field: str, value: Any):
    message = refused(changed(lambda items: items[2].update({field: value})), tmp_path)
    assert f"record 2, field {field}: {value!r} is no text" in message


@pytest.mark.parametrize("value", ["", "  \n\t"])
@pytest.mark.parametrize("field", [field for field in FIELDS if field != "pred"])
def test_a_blank_field_is_named(changed: Any, tmp_path: Path, field: str, value: str):
    message = refused(changed(lambda items: items[1].update({field: value})), tmp_path)
    assert f"record 1, field {field}: {value!r} is no text" in message


def test_a_model_may_have_answered_nothing(changed: Any, tmp_path: Path):
    path = changed(lambda items: items[0].update(pred=" "))
    assert load_records(path, tmp_path)[0].prediction == ""


@pytest.mark.parametrize("field", PICTURES)
def test_a_missing_picture_is_named_with_its_path(changed: Any, tmp_path: Path, field: str):
    message = refused(changed(lambda items: items[3].update({field: "gone.png"})), tmp_path)
    assert f"record 3, field {field}: no picture at {tmp_path / 'gone.png'}" in message


def test_a_folder_is_no_picture(changed: Any, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    message = refused(changed(lambda items: items[0].update(image="folder")), tmp_path)
    assert "record 0, field image: no picture at" in message


def test_a_text_in_the_place_of_a_picture_name_is_refused(changed: Any, tmp_path: Path):
    path = changed(lambda items: items[0].update(image="a photo of a kite " * 40))
    assert "record 0, field image" in refused(path, tmp_path)


@pytest.mark.parametrize(("item", "kind"), [("text", "str"), (None, "NoneType"), ([1], "list")])
def test_a_record_that_is_no_object_is_named(changed: Any, tmp_path: Path, item: Any, kind: str):
    message = refused(changed(lambda items: items.__setitem__(4, item)), tmp_path)
    assert f"record 4 is {kind}, not an object" in message


def test_all_mistakes_are_told_together_but_not_without_end(changed: Any, tmp_path: Path):
    def two(items: list[Any]) -> None:
        del items[0]["alt"]
        items[5]["m_loc"] = "gone.png"

    message = refused(changed(two), tmp_path)
    assert "record 0 has no field alt" in message
    assert "record 5, field m_loc" in message
    assert "more)" not in message
    message = refused(changed(lambda items: items.__setitem__(slice(None), [{}, {}])), tmp_path)
    assert message.count("has no field") == 5
    assert "(and 17 more)" in message


def test_a_bad_record_behind_the_limit_does_not_matter(changed: Any, tmp_path: Path):
    path = changed(lambda items: items[3].pop("src"))
    assert len(load_records(path, tmp_path, limit=3)) == 3
    assert "record 3" in refused(path, tmp_path, limit=4)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (8, 8), (100, 8), (None, 8)])
def test_the_limit_is_the_most_that_are_used(tmp_path: Path, limit: int | None, count: int):
    records = load_records(write_data(tmp_path), tmp_path, limit=limit)
    assert [record.index for record in records] == list(range(count))


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(tmp_path: Path, limit: int):
    assert f"limit = {limit}" in refused(write_data(tmp_path), tmp_path, limit=limit)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[{", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"src,alt\n1,2\n", "is not JSON"),
        (b"{}", "must hold a list of at least one record"),
        (b"[]", "must hold a list of at least one record"),
        (b'"text"', "must hold a list of at least one record"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "data.json"
    path.write_bytes(content)
    message = refused(path, tmp_path)
    assert expected in message
    assert str(path) in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path):
    assert f"cannot read {tmp_path / 'gone.json'}" in refused(tmp_path / "gone.json", tmp_path)
    assert f"cannot read {tmp_path}" in refused(tmp_path, tmp_path)


@pytest.mark.parametrize("template", ["", "The answer is:", "{question}"])
def test_a_template_without_a_place_for_the_question_is_refused(tmp_path: Path, template: str):
    assert repr(template) in refused(write_data(tmp_path), tmp_path, template=template)


def test_the_template_is_put_around_questions_about_pictures_only(tmp_path: Path):
    record = load_records(write_data(tmp_path), tmp_path, template="Q: {} The answer is:")[0]
    assert [query.prompt for query in record.queries] == [
        "Q: What colour is circle 0? The answer is:",
        "Q: Circle 0 is which colour? The answer is:",
        "Q: What colour is circle 0? The answer is:",
        "nq question: where is the star 0",
        "Q: How many squares are there? The answer is:",
    ]


def test_white_space_around_texts_is_removed_and_braces_in_them_are_kept(
    changed: Any, tmp_path: Path
):
    def spoil(items: list[Any]) -> None:
        for field in FIELDS:
            if field not in PICTURES:
                items[0][field] = f" \n{items[0][field]} {{0}}\t\n"

    record = load_records(changed(spoil), tmp_path, template="Q: {}")[0]
    assert record.request.prompt == "Q: What colour is circle 0? {0}"
    assert record.request.target == "green {0}"
    assert record.text_rephrase.prompt == "Q: Circle 0 is which colour? {0}"
    assert record.text_locality.prompt == "nq question: where is the star 0 {0}"
    assert record.text_locality.target == "top left {0}"
    assert record.image_locality.target == "three {0}"
    assert record.prediction == "red {0}"


def published_items(variable: str, name: str) -> list[dict[str, Any]]:
    """Return the items of a published file, or skip the test."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f"{variable} names no folder of published files")
    path = Path(folder, name)
    if not path.is_file():
        pytest.skip(f"no {name} in the folder that {variable} names")
    items: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return items


def with_stand_ins(items: list[dict[str, Any]], folder: Path) -> Path:
    """Return a copy of the items' file with a picture for every name in its first 50."""
    for item in items[:50]:
        for field in PICTURES:
            path = folder / item[field]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.symlink_to(folder / "stand-in.png")
    path = folder / "data.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", MMEDIT_FILES)
def test_the_files_of_mmedit_are_read_as_they_are(name: str, tmp_path: Path):
    items = published_items("MMEDIT_DATA", name)
    assert len(items) == MMEDIT_FILES[name]
    picture().save(tmp_path / "stand-in.png")
    path = with_stand_ins(items, tmp_path)
    records = load_records(path, tmp_path, limit=50)
    for record, item in zip(records, items, strict=False):
        assert record.request.prompt == item["src"].strip()
        assert record.request.target == item["alt"].strip()
        assert record.text_rephrase.prompt == item["rephrase"].strip()
        assert record.image_rephrase.image == tmp_path / item["image_rephrase"]
        assert record.text_locality.prompt.startswith("nq question: ")
        assert record.text_locality.image is None
        assert record.image_locality.image == tmp_path / item["m_loc"]
        assert record.image_locality.target == item["m_loc_a"].strip()
    assert len(records) == 50


@pytest.mark.parametrize("name", MMEDIT_FILES)
def test_only_pictures_are_missing_from_the_files_of_mmedit(name: str, tmp_path: Path):
    items = published_items("MMEDIT_DATA", name)
    path = tmp_path / "data.json"
    path.write_text(json.dumps(items), encoding="utf-8")
    message = refused(path, tmp_path)
    assert message.count("no picture at") == 5
    assert f"(and {3 * len(items) - 5} more)" in message


def test_the_file_of_vlkeb_is_read_as_it_is(tmp_path: Path):
    items = published_items("VLKEB_DATA", "eval_edit_onehop.json")
    assert len(items) == 1278
    picture().save(tmp_path / "stand-in.png")
    records = load_records(with_stand_ins(items, tmp_path), tmp_path, limit=50)
    assert [record.request.target for record in records] == [
        item["alt"].strip() for item in items[:50]
    ]
