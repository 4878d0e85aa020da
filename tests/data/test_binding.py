"""Binding: a record's questions about the true thing and its picture, whole or not at all."""

from pathlib import Path
from typing import Any

import pytest
from tiny_data import BOUND, changed_data

from easyedit_dualedit.data.binding import FIELDS, GROUPS, Binding, missing_fields
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query


def loaded(folder: Path, fields: Any, **options: Any) -> list[Record]:
    path = changed_data(folder, lambda items: items[1].update(binding=fields))
    return load_records(path, folder, limit=2, **options)


def test_questions_about_the_picture_have_it_and_stand_in_the_template(tmp_path: Path):
    plain, record = loaded(tmp_path, BOUND, template="{} Answer:")
    assert plain.binding is None
    picture = tmp_path / "1.png"
    assert record.binding == Binding(
        Query("What is a circle?", None, "round"),
        Query("What does the colour stand for? Answer:", picture, "the sea"),
        "the sun and everything else that is hot",
        Query("What is beside the circle? Answer:", picture, "nothing"),
    )


def test_a_record_may_have_some_of_the_groups_or_none(tmp_path: Path):
    fields = {name: BOUND[name] for name in GROUPS["beside"]}
    binding = loaded(tmp_path, fields)[1].binding
    assert binding is not None and binding.beside is not None
    assert (binding.text, binding.picture, binding.picture_old) == (None, None, None)
    assert loaded(tmp_path, {})[1].binding is None


@pytest.mark.parametrize("field", FIELDS)
def test_a_group_is_whole(tmp_path: Path, field: str):
    fields = {name: text for name, text in BOUND.items() if name != field}
    assert missing_fields(fields) == [field]
    with pytest.raises(DataError, match=f"record 1, field binding has no field {field}"):
        loaded(tmp_path, fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([], r"record 1, field binding: \[\] is no object"),
        ({"picture": "red"}, "record 1, field binding asks nothing; give some of text_q, text_a"),
        ({**BOUND, "text_a": " "}, "record 1, field binding.text_a: ' ' is no text"),
        ({**BOUND, "picture_q": 3}, "record 1, field binding.picture_q: 3 is no text"),
        ({**BOUND, "picture_old": "The sea."}, "picture_old and picture_new are one answer"),
    ],
)
def test_mistakes_name_record_and_field(tmp_path: Path, fields: Any, told: str):
    with pytest.raises(DataError, match=told):
        loaded(tmp_path, fields)


def test_groups_hold_every_field_once():
    assert sorted(FIELDS) == sorted(BOUND)
