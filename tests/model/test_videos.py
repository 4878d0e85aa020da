import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_editors import picture, shared
from tiny_videos import WATCHING, frames, video_of, write_clip

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model import video_frames
from easyedit_dualedit.model.inputs import Query, open_image, shown_key
from easyedit_dualedit.model.shown_content import shown_digest, still_of
from easyedit_dualedit.model.video_frames import Clips, read_clip, strip_of
from easyedit_dualedit.model.videos import Video


@pytest.mark.parametrize("form", ["pictures", "array", "tensor"])
def test_frames_in_every_form_are_one_video(form: str):
    images = frames("red", "green", "blue")
    array = np.stack([np.asarray(image) for image in images])
    given = {"pictures": images, "array": array, "tensor": torch.from_numpy(array)}[form]
    video = Video(given)
    assert len(video.frames or ()) == 3
    assert shown_digest(video) == shown_digest(Video(images))
    assert shown_key(video) == shown_key(Video(images))


def test_a_folder_shows_its_frames_by_number(tmp_path: Path):
    for number, colour in ((10, "blue"), (2, "green"), (1, "red")):
        picture(colour).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    query = Query("What?", str(tmp_path))
    assert query.video is not None and query.pictures == ()
    assert [path.name for path in query.files if isinstance(path, Path)] == [
        "1.png",
        "2.png",
        "10.png",
    ]
    assert still_of(query.video) == tmp_path / "1.png"


def test_rate_and_count_tell_videos_apart():
    images = frames("red", "green")
    videos = [Video(images), Video(images, rate=2), Video(images, count=1), Video(images[::-1])]
    assert len({shown_digest(video) for video in videos}) == 4
    assert len({shown_key(video) for video in videos}) == 4


def test_a_processor_that_samples_none_shows_every_frame():
    reader = shared("llava-onevision").processor.video_processor
    assert read_clip(video_of(*["red"] * 9), reader).pixels.shape == (9, 40, 40, 3)


def test_count_spreads_the_frames_evenly():
    images = [picture(size=(30, 30)) for _ in range(10)]
    clip = read_clip(Video(images, count=4), None)
    assert clip.metadata.frames_indices == [0, 2, 5, 7]
    assert len(read_clip(Video(images, count=99), None).pixels) == 10


def test_a_processor_that_samples_chooses_the_frames():
    reader = shared("qwen3-vl").processor.video_processor
    video = Video([picture(size=(30, 30))] * 40, rate=8)
    expected = reader.sample_frames(metadata=read_clip(Video(video.source, 8), None).metadata)
    clip = read_clip(video, reader)
    assert list(clip.metadata.frames_indices) == list(expected)
    assert len(clip.pixels) == len(expected) == 10  # two a second


@pytest.mark.parametrize(("family", "count"), [("internvl", 3), ("qwen2.5-vl", 1)])
def test_a_video_too_short_for_its_processor_s_choice_is_one_clear_line(
    family: str, count: int, monkeypatch: pytest.MonkeyPatch
):
    if family not in WATCHING:
        pytest.skip(f"this transformers has no {family}")
    reader = shared(family).processor.video_processor
    monkeypatch.setattr(reader, "do_sample_frames", True)
    monkeypatch.setattr(reader, "fps", 2)
    short = video_of(*["red"] * count, rate=24.0)
    with pytest.raises(DataError, match=f"cannot choose among {count} frames .*give count"):
        read_clip(short, reader)
    assert len(read_clip(Video(short.source, 24.0, count=1), reader).pixels) == 1


def test_a_file_shows_eight_frames_or_as_many_as_are_asked_for(tmp_path: Path):
    pytest.importorskip("av")
    path = write_clip(tmp_path / "clip.mp4")
    clip = read_clip(Video(path), shared("llava-onevision").processor.video_processor)
    assert list(clip.metadata.frames_indices) == [place * 12 // 8 for place in range(8)]
    shades = clip.pixels.mean((1, 2, 3))
    assert (np.diff(shades) > 10).all()
    assert len(read_clip(Video(path, count=3), None).pixels) == 3
    assert clip.metadata.fps == 4
    assert [image.size for image in strip_of(Video(path), 2)] == [(64, 48)] * 2
    assert Query("What?", path).video == Video(path)


def test_a_gif_is_a_video_where_one_is_asked_for_and_else_its_first_frame(tmp_path: Path):
    pytest.importorskip("av")
    path = tmp_path / "drawn.gif"
    first, *others = frames("red", "green", "blue")
    first.save(path, save_all=True, append_images=others, duration=250)
    clip = read_clip(Video(path), shared("llava-onevision").processor.video_processor)
    for got, frame in zip(clip.pixels, (first, *others), strict=True):
        assert np.abs(got.astype(int) - np.asarray(frame)).mean() < 10
    assert clip.metadata.fps == pytest.approx(4, rel=0.1)
    (picture_shown,) = Query("What?", path).pictures
    assert np.abs(np.asarray(open_image(picture_shown), int) - np.asarray(first)).mean() < 10


def test_a_file_without_a_decoder_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "clip.mp4").write_bytes(b"0")
    monkeypatch.setattr(video_frames, "_is_installed", lambda _name: False)
    with pytest.raises(DataError, match="pip install av"):
        read_clip(Video(tmp_path / "clip.mp4"), None)


def test_a_damaged_file_is_named(tmp_path: Path):
    pytest.importorskip("av")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4 cannot be read as a video"):
        read_clip(Video(tmp_path / "clip.mp4"), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": []}, "without frames"),
        ({"source": 3}, "int is no video"),
        ({"source": ""}, "no path of a video"),
        ({"source": "a.mp4", "rate": 2.0}, "says it itself"),
        ({"source": "folder", "rate": 0}, "rate = 0"),
        ({"source": "folder", "count": 0}, "count = 0"),
        ({"source": "folder", "count": True}, "count = True"),
    ],
)
def test_wrong_videos_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        Video(**arguments)  # type: ignore[arg-type]


def test_missing_and_empty_sources_are_named(tmp_path: Path):
    with pytest.raises(DataError, match="no video at"):
        read_clip(Video(tmp_path / "missing.mp4"), None)
    with pytest.raises(DataError, match="no pictures in"):
        read_clip(Video(tmp_path), None)


def test_frames_of_several_sizes_are_refused():
    with pytest.raises(DataError, match=r"2 sizes, such as 30x30 and 40x40"):
        read_clip(Video([picture(size=(30, 30)), picture(size=(40, 40))]), None)


def test_clips_are_kept_within_their_budget():
    reader = shared("llava-onevision").processor.video_processor
    first, second = video_of("red", "blue"), video_of("blue", "red")
    clips = Clips(reader, budget=2 * 40 * 40 * 3)
    assert clips.of(first) is clips.of(video_of("red", "blue"))
    kept = clips.of(second)
    assert clips.of(second) is kept
    again = clips.of(first)
    np.testing.assert_array_equal(again.pixels, read_clip(first, reader).pixels)
    nothing = Clips(reader, budget=10)
    assert nothing.of(first) is not nothing.of(first)


def test_threads_may_share_clips():
    reader = shared("llava-onevision").processor.video_processor
    clips = Clips(reader, budget=3 * 40 * 40 * 3)
    videos = [video_of("red", "blue"), video_of("blue", "red"), video_of("green", "blue")]
    expected = [read_clip(video, reader).pixels for video in videos]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(60):
                found = list(pool.map(clips.of, videos * 4))
                for clip, pixels in zip(found, expected * 4, strict=True):
                    assert np.array_equal(clip.pixels, pixels)
    finally:
        sys.setswitchinterval(interval)
    assert np.array_equal(copy.deepcopy(clips).of(videos[0]).pixels, expected[0])
