"""Pictures in every form that people have: taken and read upright, or refused in a line."""

import base64
import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, features
from tiny_editors import picture

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model import inputs
from easyedit_dualedit.model.inputs import Query, content_digest, open_image, picture_key
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.model.videos import Video

EXIF_FORMATS = ["JPEG", "PNG", "TIFF", "WEBP", *(["AVIF"] if features.check("avif") else [])]


def photo(orientation: int, size: tuple[int, int] = (48, 32)) -> tuple[Image.Image, Image.Exif]:
    """Return a picture that differs in every corner, and the EXIF of a camera held otherwise."""
    image = Image.new("RGB", size, "blue")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 12, 12), fill="red")
    draw.rectangle((36, 0, 48, 12), fill="white")
    exif = Image.Exif()
    exif[0x0112] = orientation
    return image, exif


def loaded_by_transformers(value: Any) -> Image.Image:
    define_missing_operators()
    from transformers.image_utils import load_image

    return load_image(value)


@pytest.mark.parametrize("form", EXIF_FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright_as_transformers_reads_them(tmp_path: Path, form: str, orientation: int):
    image, exif = photo(orientation)
    path = tmp_path / f"photo.{form.lower()}"
    lossless = {"lossless": True} if form == "WEBP" else {}
    image.save(path, form, exif=exif, **lossless)
    expected = loaded_by_transformers(str(path))
    assert expected.size == ((48, 32) if orientation < 5 else (32, 48))
    with Image.open(path) as opened:
        for value in (path, str(path), opened, path.read_bytes(), io.BytesIO(path.read_bytes())):
            shown = open_image(value)
            assert shown.size == expected.size
            assert np.array_equal(np.asarray(shown), np.asarray(expected))
            assert open_image(shown).size == expected.size, "once is enough"


def forms(folder: Path) -> dict[str, Any]:
    """Return the same picture in the forms that are taken."""
    image = picture(size=(40, 30))
    image.save(folder / "p.png")
    image.save(folder / "of the child.png")
    content = (folder / "p.png").read_bytes()
    values = np.asarray(image)
    floats = torch.from_numpy(values.copy()).permute(2, 0, 1).float() / 255
    return {
        "path": folder / "p.png",
        "text": str(folder / "p.png"),
        "file URL": (folder / "p.png").as_uri(),
        "file URL, escaped": (folder / "of the child.png").as_uri(),
        "picture": image,
        "list of one": [image],
        "array": values,
        "array, channels first": np.moveaxis(values, -1, 0),
        "array of floats": values.astype(np.float64) / 255,
        "tensor": torch.from_numpy(values.copy()),
        "tensor of floats": floats,
        "bfloat16 would round": floats.double(),
        "bytes": content,
        "bytearray": bytearray(content),
        "open file": io.BytesIO(content),
        "data URI": "data:image/png;base64," + base64.b64encode(content).decode(),
        "datasets, bytes": {"bytes": content, "path": None},
        "datasets, path": {"bytes": None, "path": str(folder / "p.png")},
    }


def test_a_picture_is_the_same_in_every_form(tmp_path: Path):
    expected = content_digest(picture(size=(40, 30)))
    for name, value in forms(tmp_path).items():
        (shown,) = Query("What is this?", value).pictures
        assert content_digest(shown) == expected, name


def test_several_pictures_keep_their_order_and_one_in_a_list_is_that_one(tmp_path: Path):
    red, blue = picture("red"), picture("blue")
    red.save(tmp_path / "r.png")
    assert Query("?", [str(tmp_path / "r.png"), blue]).pictures == (tmp_path / "r.png", blue)
    assert Query("?", (red,)).image is red
    assert Query("?", []).image is None and Query("?", None).pictures == ()


def test_what_is_changed_after_the_question_was_made_changes_nothing():
    values = np.zeros((8, 8, 3), np.uint8)
    query = Query("?", values)
    values[:] = 255
    assert np.asarray(open_image(query.pictures[0])).max() == 0


@pytest.mark.parametrize("pages", [1, 2])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF"])
def test_a_picture_outlives_the_file_that_it_was_opened_from(tmp_path: Path, form: str, pages: int):
    image, exif = photo(6)
    path = tmp_path / "photo"
    more = {"save_all": True, "append_images": [image.rotate(180)]} if pages > 1 else {}
    # Pillow writes several pictures into one JPEG file as MPO.
    image.save(path, "MPO" if more and form == "JPEG" else form, exif=exif, **more)
    expected = content_digest(path)
    with Image.open(path) as opened:
        query, video = Query("?", opened), Video([opened])
    path.unlink()
    assert query.image is opened
    assert video.frames is not None
    for shown in (*query.pictures, *video.frames):
        assert content_digest(shown) == expected


def test_an_opened_picture_that_cannot_be_read_is_refused_when_the_question_is_made(
    tmp_path: Path,
):
    picture(size=(400, 400)).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for opened, reason in (
        (closed(tmp_path), "its file is closed"),
        (Image.open(io.BytesIO(content[: len(content) // 2])), "truncated"),
    ):
        with pytest.raises(DataError, match=f"cannot be read as a picture .*{reason}.*; replace"):
            Query("?", opened)


def closed(folder: Path) -> Image.Image:
    picture(size=(300, 300)).save(folder / "closed.png")
    with Image.open(folder / "closed.png") as opened:
        pass
    return opened


def refused(folder: Path) -> dict[str, Any]:
    """Return what is no picture, by what the error says of it."""
    picture(size=(400, 400)).save(folder / "whole.png")
    content = (folder / "whole.png").read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    shut = (folder / "whole.png").open("rb")
    shut.close()
    return {
        "no picture at": folder / "none.png",
        "half.png cannot be read": folder / "half.png",
        "truncated, opened": Image.open(io.BytesIO(content[: len(content) // 2])),
        "closed": closed(folder),
        "bytes cannot be read": content[: len(content) // 2],
        "data URI": "data:image/png;base64,not base64!",
        "data URI of no picture": "data:text/plain,hello",
        "no path of a picture": "",
        "NUL": "a\0b.png",
        "shape [5]": np.zeros(5, np.uint8),
        "shape [0, 4, 3]": np.zeros((0, 4, 3), np.uint8),
        "int64": np.zeros((4, 4, 3), np.int64),
        "floats above 1": np.full((4, 4, 3), 3.0),
        "NaN": torch.full((3, 4, 4), torch.nan),
        "four dimensions": torch.zeros(1, 3, 4, 4),
        "number": 3,
        "dictionary": {"url": "p.png"},
        "shut file": shut,
        "text file": io.StringIO("hello"),
        "folder": folder,
    }


def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path):
    for name, value in refused(tmp_path).items():
        with pytest.raises(DataError) as caught:
            open_image(Query("?", [value]).pictures[0])
        text = str(caught.value)
        assert "\n" not in text and len(text) < 500, (name, text)


def test_a_url_that_cannot_be_fetched_is_a_data_error(monkeypatch: pytest.MonkeyPatch):
    define_missing_operators()
    from transformers import image_utils

    def unreachable(_url: str) -> Image.Image:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(image_utils, "load_image", unreachable)
    with pytest.raises(DataError, match="cannot be fetched .no route to host"):
        Query("?", "https://example.org/p.png")
    monkeypatch.setattr(image_utils, "load_image", lambda _url: picture())
    assert Query("?", "https://example.org/p.png").pictures[0].size == picture().size


def test_pictures_are_told_apart_by_what_they_show():
    indices = Image.new("P", (8, 8), 0)
    red, blue = indices.copy(), indices.copy()
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert red.tobytes() == blue.tobytes()
    assert picture_key(red) != picture_key(blue)
    # The same pixels, held otherwise, and turned otherwise.
    assert picture_key(red) == picture_key(red.convert("RGB"))
    flat, exif = photo(6)
    stream = io.BytesIO()
    flat.save(stream, "PNG", exif=exif)
    turned = Image.open(stream)
    assert picture_key(turned) != picture_key(flat)
    assert picture_key(turned) == picture_key(flat.transpose(Image.Transpose.ROTATE_270))
    see_through = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert picture_key(see_through) == picture_key(see_through.convert("RGB"))


def test_a_file_is_told_apart_by_name_time_and_size(tmp_path: Path):
    path = tmp_path / "p.png"
    assert picture_key(path) == str(path)
    picture("red").save(path)
    before = picture_key(path)
    assert picture_key(path) == before
    picture("blue", (60, 60)).save(path)
    assert picture_key(path) != before


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_of_grey_are_scaled(mode: str, tmp_path: Path):
    values = np.array([[0, 257], [25700, 65535]], dtype=">u2" if mode == "I;16B" else "<u2")
    deep = Image.frombytes(mode, (2, 2), values.tobytes())
    shown = np.array(open_image(deep))
    assert (shown == np.array([[0, 1], [100, 255]])[..., None]).all()
    path = tmp_path / "deep.tiff"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    deep.save(path, exif=exif)
    turned = np.array(open_image(path))
    assert (turned == np.array([[100, 0], [255, 1]])[..., None]).all()


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_32_bits_are_taken_where_eight_hold_them(mode: str):
    assert np.array(open_image(Image.new(mode, (2, 2), 200)))[0, 0].tolist() == [200] * 3
    for value in (300, -1):
        with pytest.raises(DataError, match="nothing says which is white"):
            open_image(Image.new(mode, (2, 2), value))


def test_fractions_up_to_one_are_scaled():
    values = np.array([[0, 0.5], [0.25, 1]], dtype=np.float32)
    shown = np.array(open_image(Image.fromarray(values)))
    assert (shown == np.array([[0, 128], [64, 255]])[..., None]).all()
    black = np.array(open_image(Image.fromarray(np.zeros((2, 2), dtype=np.float32))))
    assert not black.any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "YCbCr", "HSV"])
def test_every_mode_is_read_as_rgb(mode: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(Image.new(mode, (8, 8))).mode == "RGB"


def test_a_query_looks_at_pictures_in_memory_once_and_at_files_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    looks: list[object] = []
    real = inputs.open_image
    monkeypatch.setattr(inputs, "open_image", lambda seen: looks.append(seen) or real(seen))
    query = Query("what?", (picture("red"), picture("blue")))
    assert query.shown_keys == query.shown_keys == tuple(picture_key(p) for p in query.pictures)
    assert len(looks) == 2 + 2
    again = dataclasses.replace(query, image=picture("green"))
    assert again.shown_keys == (picture_key(picture("green")),)
    path = tmp_path / "p.png"
    both = Query("what?", (picture("red"), path))
    before = both.shown_keys
    picture("blue", (60, 60)).save(path)
    assert both.shown_keys != before
    assert both.shown_keys == (picture_key(picture("red")), picture_key(path))
    assert Query("what?").shown_keys == ()


def test_an_empty_crop_is_no_picture():
    with pytest.raises(DataError, match="of 0 x 0 pixels shows nothing"):
        Query("what?", picture("red").crop((5, 5, 5, 5)))
