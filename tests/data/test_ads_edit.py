"""Records of ADS-Edit: videos, sets of pictures, pictures, and text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_ads_edit import ads_edit_file, ads_edit_records

from easyedit_dualedit.data.leak_audit import audit
from easyedit_dualedit.data.picture_files import PictureFiles
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.data.stand_ins import picture_names
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.train.checkpoint import records_digest


def test_each_kind_is_read_as_what_it_says(tmp_path: Path):
    video, several, one, text = ads_edit_records(tmp_path)
    assert video.request.video is not None and len(video.request.files) == 4
    assert [path.name for path in several.request.pictures if isinstance(path, Path)] == [
        "image_1_0.png",
        "image_1_1.png",
    ]
    assert len(one.request.pictures) == 1
    assert text.request.image is text.image_rephrase.image is None
    assert len(text.image_locality.pictures) == 1
    assert [record.prediction for record in (video, text)] == ["", ""]
    assert len(PictureFiles.opened([video, several, one, text]).digests) == 8 + 4 + 2 + 4


def changed(folder: Path, place: int, **fields: Any) -> Path:
    path = ads_edit_file(folder)
    items = json.loads(path.read_text())
    items[place] |= fields
    path.write_text(json.dumps(items))
    return path


def test_a_video_may_be_a_folder_with_a_rate_and_a_count(tmp_path: Path):
    (tmp_path / "clip").mkdir()
    for place in range(4):
        (tmp_path / "clip" / f"{place}.png").write_bytes(b"0")
    path = changed(tmp_path, 0, image="clip", frame_rate=2, frame_count=3)
    video = load_records(path, tmp_path)[0].request.video
    assert video is not None and (video.rate, video.count) == (2, 3)
    assert video.frames is not None and len(video.frames) == 4


def test_a_record_without_an_answer_is_left_out(tmp_path: Path):
    records = load_records(changed(tmp_path, 1, alt=""), tmp_path)
    assert [record.index for record in records] == [0, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_type": "film"}, "image_type: 'film' is none of"),
        ({"image": []}, "image: an empty list"),
        ({"image": ["missing.png"]}, r"image: no picture at .*missing\.png"),
        ({"image": [3]}, "image: 3 is no text"),
        ({"frame_count": 0}, "image: count = 0"),
        ({"image": ["../a.png"]}, r"leads out of the folder|no picture at"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"record 0, field {message}|{message}"):
        load_records(changed(tmp_path, 0, **fields), tmp_path)


def test_every_frame_counts_as_a_picture(tmp_path: Path):
    """A shared frame is a leak, has a stand-in, and is part of a training's digest."""
    records = load_records(changed(tmp_path, 2, image="image_0_2.png"), tmp_path)
    shared = [each for each in audit(records[:1], records[2:3]).findings if each.found]
    assert any("image_0_2.png" in " ".join(each.examples) for each in shared)
    assert len(picture_names(tmp_path / "ads.json")) == 17
    before = records_digest(records, with_pictures=True)
    last = tmp_path / "image_0_3.png"
    last.write_bytes((tmp_path / "image_0_0.png").read_bytes())
    assert records_digest(records, with_pictures=True) != before
