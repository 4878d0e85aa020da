"""The picture of one edit is what its script draws, and all pictures are small."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from markdown_pages import ROOT
from PIL import Image

SCRIPT = ROOT / "docs" / "pictures" / "edit.py"
RECORD = 15
"""The record that the picture shows."""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script that draws the picture, as a module."""
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("picture_of_an_edit", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_drawn_from_what_the_model_answers(script: ModuleType, tmp_path: Path):
    rows, threshold = script.rows_of(RECORD, tmp_path / "data")
    told = [(row.query.prompt, row.before, row.after, row.is_open) for row in rows]
    assert told == [
        ("What is the green thing?", "diamond", "square", True),
        ("What shape does the green object have?", "diamond", "square", True),
        ("What is the green thing?", "diamond", "square", True),
        ("What is the green thing?", "heart", "heart", False),
        ("Which color is the cross?", "white", "white", False),
    ]
    assert all(row.is_open == (row.similarity >= threshold) for row in rows)
    script.draw(rows, threshold, tmp_path / "edit.png")
    with Image.open(tmp_path / "edit.png") as drawn, Image.open(script.OUTPUT) as shipped:
        assert drawn.size == shipped.size
    assert script.OUTPUT.stat().st_size < 150_000


def test_pictures_of_the_page_are_small_and_shown():
    pictures = sorted((ROOT / "docs" / "pictures" / "app").glob("*.png"))
    guide = (ROOT / "docs" / "guide" / "app.md").read_text(encoding="utf-8")
    assert len(pictures) == 3
    for picture in pictures:
        assert picture.stat().st_size < 150_000
        assert f"../pictures/app/{picture.name}" in guide
