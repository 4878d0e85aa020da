"""Stand-in pictures: drawn from names alone, inside their folder, whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_data import write_data

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.data.stand_ins import draw_stand_ins, picture_names
from easyedit_dualedit.errors import ConfigError, DataError

NAMES = ("a.jpg", "deep/er/a.png", "b.JPG", "deep/c.jpeg", "c.PNG")


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_name_becomes_a_picture_in_the_format_of_its_suffix(tmp_path: Path):
    assert draw_stand_ins(NAMES, tmp_path / "new") == len(NAMES)
    assert set(files_of(tmp_path / "new")) == set(NAMES)
    for name in NAMES:
        with Image.open(tmp_path / "new" / name) as image:
            image.load()
            assert image.format == ("PNG" if name.lower().endswith("png") else "JPEG")
            assert (image.mode, image.size) == ("RGB", (48, 48))


@pytest.mark.parametrize("size", [8, 13, 224])
def test_the_size_is_that_asked_for(tmp_path: Path, size: int):
    draw_stand_ins(["a.png"], tmp_path, size=size)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (size, size)


@pytest.mark.parametrize("size", [7, 0, -3])
def test_a_size_without_room_for_shapes_is_refused(tmp_path: Path, size: int):
    with pytest.raises(ConfigError, match=f"size = {size}"):
        draw_stand_ins(["a.png"], tmp_path, size=size)


def test_a_picture_follows_from_its_name_alone_and_names_look_different(tmp_path: Path):
    names = [f"{number}.png" for number in range(200)]
    draw_stand_ins(names, tmp_path / "one")
    draw_stand_ins(reversed(names), tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    images = [Image.open(tmp_path / "one" / name).convert("RGB") for name in names]
    assert len({image.tobytes() for image in images}) == len(names)
    assert all(len(image.getcolors()) > 1 for image in images)


def test_what_is_there_is_left_and_what_is_named_twice_is_drawn_once(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"mine")
    assert draw_stand_ins(["a.jpg", "b.jpg", "b.jpg"], tmp_path) == 1
    assert (tmp_path / "a.jpg").read_bytes() == b"mine"
    assert draw_stand_ins(["a.jpg", "b.jpg"], tmp_path) == 0
    assert draw_stand_ins([], tmp_path / "nothing") == 0


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "b/../../a.jpg", "/a.jpg", "..\\a.jpg", "C:\\a.jpg", "b/../a.jpg", "\\a.jpg"],
)
def test_a_name_that_leads_out_is_refused_before_anything_is_drawn(tmp_path: Path, name: str):
    folder = tmp_path / "folder"
    with pytest.raises(DataError, match="leads out of") as caught:
        draw_stand_ins(["fine.jpg", name], folder)
    assert repr(name) in str(caught.value)
    assert files_of(tmp_path) == {}


@pytest.mark.parametrize("name", ["a.gif", "a", "", ".jpg", "a\0.jpg", "\ud83d.jpg"])
def test_a_name_that_is_no_pictures_is_refused(tmp_path: Path, name: str):
    with pytest.raises(DataError, match="picture name"):
        draw_stand_ins(["fine.jpg", name], tmp_path)
    assert files_of(tmp_path) == {}


def test_a_link_that_leads_out_is_not_followed(tmp_path: Path):
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "there.jpg").write_bytes(b"theirs")
    (folder / "linked").symlink_to(elsewhere)
    assert draw_stand_ins(["linked/there.jpg"], folder) == 0
    with pytest.raises(DataError, match="leads out of"):
        draw_stand_ins(["linked/deep/gone.jpg"], folder)
    assert files_of(elsewhere) == {"there.jpg": b"theirs"}
    assert [path.name for path in elsewhere.iterdir()] == ["there.jpg"]


def test_a_folder_reached_by_a_link_is_as_good_as_another(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert draw_stand_ins(["deep/a.jpg"], tmp_path / "link") == 1


@pytest.mark.parametrize("name", ["taken/a.jpg", "folder.jpg", "a" * 300 + ".jpg"])
def test_a_file_that_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path, name: str):
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        draw_stand_ins([name], tmp_path)
    assert files_of(tmp_path) == {"taken": b"a file"}


def test_a_picture_that_cannot_be_put_in_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DataError, match="No space left"):
        draw_stand_ins(["a.jpg"], tmp_path)
    assert files_of(tmp_path) == {}


def test_the_names_of_a_file_come_once_and_in_order(tmp_path: Path):
    path = write_data(tmp_path, 3)
    expected = ["0.png", "0_other.png", "1.png", "1_other.png", "2.png", "2_other.png"]
    assert picture_names(path) == expected
    assert picture_names(path, limit=2) == expected[:4]
    items = json.loads(path.read_text(encoding="utf-8"))
    items[0]["image"], items[0]["m_loc"], items[1] = 3, " ", "text"
    del items[2]["image"]
    path.write_text(json.dumps(items), encoding="utf-8")
    assert picture_names(path) == ["0.png", "2.png", "2_other.png"]


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="cannot read"):
        picture_names(tmp_path / "gone.json")


def test_records_load_with_stand_ins(tmp_path: Path):
    path = write_data(tmp_path / "data", 4)
    draw_stand_ins(picture_names(path), tmp_path / "drawn")
    records = load_records(path, tmp_path / "drawn")
    assert records[3].request.image == tmp_path / "drawn" / "3.png"
