"""Records: every mistake in a data file is named by place before anything runs."""

import codecs
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_data import PORTED, changed_data, write_data
from tiny_editors import backbone_of, picture, shared
from tiny_models import TinyModel

from easyedit_dualedit.data.records import (
    FIELDS,
    METRICS,
    PICTURES,
    PORTABILITY_FIELDS,
    load_records,
    metric_queries,
    problems_of,
    read_items,
)
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[list[Any]], Any]], Path]:
    """Return a function that writes the data file again after a change of its items."""
    return partial(changed_data, tmp_path)


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
    assert [query.prompt for query in metric_queries(records[::-1], "text_generality")] == [
        f"Circle {index} is which colour?" for index in range(7, -1, -1)
    ]
    for place, metric in enumerate(METRICS):
        assert metric_queries(records, metric) == [record.queries[place] for record in records]


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
        ('[{"src": 1}]'.encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        (b'{"src": 1}\n{"src": 2}\n', "it is JSON lines"),
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


def test_prompts_lose_white_space_around_them_and_targets_stay_as_they_are(
    changed: Any, tmp_path: Path
):
    def spoil(items: list[Any]) -> None:
        for field in FIELDS:
            if field not in PICTURES:
                items[0][field] = f" \n{items[0][field]} {{0}}\t\n"

    record = load_records(changed(spoil), tmp_path, template="Q: {}")[0]
    assert record.request.prompt == "Q: What colour is circle 0? {0}"
    assert record.text_rephrase.prompt == "Q: Circle 0 is which colour? {0}"
    assert record.text_locality.prompt == "nq question: where is the star 0 {0}"
    assert record.prediction == "red {0}"
    assert {query.target for query in record.queries[:3]} == {" \ngreen {0}\t\n"}
    assert record.text_locality.target == " \ntop left {0}\t\n"
    assert record.image_locality.target == " \nthree {0}\t\n"


def test_a_target_is_tokenised_with_the_white_space_around_it(tiny: TinyModel):
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    for target in ("top left", " top left", "top left ", "top left\n"):
        ids = encoder.tokenizer(target, add_special_tokens=False)["input_ids"]
        assert encoder.target_ids(target) == ids
        batch = encoder.encode([Query("Where is the star?", picture(), target)])
        assert batch.inputs["input_ids"][batch.target].tolist() == ids
    with pytest.raises(DataError, match="tokenises to nothing"):
        encoder.target_ids(" \n")


def test_a_blank_target_is_refused_where_answers_have_a_prefix_too():
    tiny = shared("blip2")
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    assert encoder.target_ids("top") == encoder.target_ids(" top")
    with pytest.raises(DataError, match="tokenises to nothing"):
        encoder.target_ids(" \n")


# ---- portability -----------------------------------------------------------------------------


def test_a_portability_question_asks_about_the_picture_of_the_edit(changed: Any, tmp_path: Path):
    def add(items: list[Any]) -> None:
        items[1]["port_new"] = [PORTED, PORTED | {"port_q": "Who paints it?", "port_a": "Ann"}]
        items[2]["port_new"] = []

    records = load_records(changed(add), tmp_path, template="Q: {} A:")
    assert records[1].portability == (
        Query("Q: What does the circle's colour stand for? A:", tmp_path / "1.png", "the sea "),
        Query("Q: Who paints it? A:", tmp_path / "1.png", "Ann"),
    )
    assert [len(record.portability) for record in records] == [0, 2, 0, 0, 0, 0, 0, 0]
    assert len(records[1].queries) == len(METRICS)


@pytest.mark.parametrize("value", [None, "text", {"port_q": "a"}, 3])
def test_portability_that_is_no_list_is_named(changed: Any, tmp_path: Path, value: Any):
    message = refused(changed(lambda items: items[2].update(port_new=value)), tmp_path)
    assert f"record 2, field port_new: {value!r} is no list" in message


@pytest.mark.parametrize("field", PORTABILITY_FIELDS)
@pytest.mark.parametrize("value", [None, 3, "", " \n"])
def test_a_bad_field_of_a_portability_entry_is_named(
    changed: Any, tmp_path: Path, field: str, value: Any
):
    path = changed(lambda items: items[4].update(port_new=[PORTED, PORTED | {field: value}]))
    message = refused(path, tmp_path)
    assert f"record 4, field port_new[1].{field}: {value!r} is no text" in message
    assert message.count("record") == 1 + str(path).count("record")


def test_a_missing_field_and_an_entry_that_is_no_object_are_named(changed: Any, tmp_path: Path):
    without = {name: text for name, text in PORTED.items() if name != "port_q"}
    message = refused(changed(lambda items: items[0].update(port_new=["a", without])), tmp_path)
    assert "record 0, field port_new[0]: 'a' is no object" in message
    assert "record 0, field port_new[1] has no field port_q" in message


# ---- validation ------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
def test_half_of_a_surrogate_pair_is_named(changed: Any, tmp_path: Path, field: str):
    message = refused(changed(lambda items: items[3].update({field: "a \ud83d"})), tmp_path)
    assert f"record 3, field {field}: 'a \\ud83d' is no valid Unicode text" in message


def test_all_problems_are_to_be_had(changed: Any, tmp_path: Path):
    def spoil(items: list[Any]) -> None:
        items[0] = {}
        items[5]["m_loc"] = "gone.png"
        items[7] = "text"

    path = changed(spoil)
    found = problems_of(path, tmp_path)
    assert found == [
        *(f"record 0 has no field {field}" for field in FIELDS),
        f"record 5, field m_loc: no picture at {tmp_path / 'gone.png'}",
        "record 7 is str, not an object",
    ]
    message = refused(path, tmp_path)
    assert message == f"{path}: " + "; ".join(found[:5]) + " (and 8 more)"
    assert problems_of(path, tmp_path, limit=5) == found[:11]
    assert problems_of(path, tmp_path, check_pictures=False) == [*found[:11], found[12]]
    assert problems_of(write_data(tmp_path), tmp_path) == []
    with pytest.raises(DataError, match="cannot read"):
        problems_of(tmp_path / "gone.json", tmp_path)


def test_records_are_read_without_their_pictures_only_if_asked(tmp_path: Path):
    path, nowhere = write_data(tmp_path), tmp_path / "nowhere"
    assert "no picture at" in refused(path, nowhere)
    records = load_records(path, nowhere, check_pictures=False)
    assert [record.request.image for record in records] == [
        nowhere / f"{index}.png" for index in range(8)
    ]
    there = load_records(path, tmp_path)
    assert [record.request.prompt for record in records] == [r.request.prompt for r in there]


def test_texts_are_checked_without_pictures_too(changed: Any, tmp_path: Path):
    path = changed(lambda items: items[2].update(image=" "))
    assert "record 2, field image" in refused(path, tmp_path / "nowhere", check_pictures=False)


def test_a_list_nested_without_end_is_refused(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    assert "is not JSON" in refused(path, tmp_path)


def test_items_are_read_as_they_are(changed: Any):
    path = changed(lambda items: items.__setitem__(0, "text"))
    assert read_items(path)[0] == "text"
    assert len(read_items(path)) == 8
    assert len(read_items(path, limit=3)) == 3
    with pytest.raises(DataError, match="limit = 0"):
        read_items(path, limit=0)


def test_no_picture_is_held_in_memory(tmp_path: Path):
    for record in load_records(write_data(tmp_path), tmp_path):
        assert all(isinstance(item, Path) for query in record.queries for item in query.pictures)


# ---- questions without their template ------------------------------------------------


@pytest.mark.parametrize("template", ["{}", "Q: {}", "{} A:", "Q: {}\nA: ", " {} "])
def test_a_question_is_what_the_template_was_put_around(tmp_path: Path, template: str):
    plain = load_records(write_data(tmp_path), tmp_path)[3]
    record = load_records(write_data(tmp_path), tmp_path, template=template)[3]
    assert [record.question(query) for query in record.queries] == [
        query.prompt for query in plain.queries
    ]
    other = Query("another prompt", record.request.image)
    assert record.question(other) == "another prompt"


def test_a_template_with_two_places_cannot_be_taken_away(tmp_path: Path):
    record = load_records(write_data(tmp_path), tmp_path, template="{} Again: {}")[0]
    assert record.question(record.request) == record.request.prompt


def test_a_byte_order_mark_is_read_over(tmp_path: Path):
    path = write_data(tmp_path)
    expected = load_records(path, tmp_path)
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert load_records(path, tmp_path) == expected
