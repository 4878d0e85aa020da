"""Names of pictures in records lead to nothing outside of the folder of the pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_data
from tiny_editors import picture

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import DataError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A file of two records, and a picture outside of the folder of their pictures."""
    path = write_data(tmp_path / "images", 2)
    picture("red").save(tmp_path / "secret.png")
    return path


def rename(data: Path, field: str, name: Any) -> None:
    items = json.loads(data.read_text(encoding="utf-8"))
    items[1][field] = name
    data.write_text(json.dumps(items), encoding="utf-8")


@pytest.mark.parametrize("field", ["image", "image_rephrase", "m_loc"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_names_that_lead_out_are_refused_unless_allowed(data: Path, field: str, is_absolute: bool):
    secret = data.parents[1] / "secret.png"
    name = str(secret) if is_absolute else "0.png/../../secret.png"
    rename(data, field, name)
    with pytest.raises(DataError, match=f"record 1, field {field}: .* leads out .*--allow-outside"):
        load_records(data, data.parent)
    if is_absolute:
        records = load_records(data, data.parent, allow_outside=True)
        assert secret in {path for query in records[1].queries for path in query.pictures}


@pytest.mark.parametrize("kind", ["video", "image"])
def test_names_of_frames_and_sets_of_pictures_are_looked_at_too(data: Path, kind: str):
    items = json.loads(data.read_text(encoding="utf-8"))
    items[1]["file_type"] = kind
    items[1]["image"] = ["0.png", "../secret.png"]
    data.write_text(json.dumps(items), encoding="utf-8")
    with pytest.raises(DataError, match="leads out"):
        load_records(data, data.parent)
