"""Training on videos, sets of pictures, pictures and text: the shared step, caches, the gate."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_ads_edit import ads_edit_records
from tiny_data import fast
from tiny_editors import picture, shared, trained_editor
from tiny_videos import WATCHING

from benchmarks.live_bytes import LiveBytes
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import SCOPE, scope_queries
from easyedit_dualedit.model import video_frames
from easyedit_dualedit.model.videos import Video
from easyedit_dualedit.train import frozen_part
from easyedit_dualedit.train.gate_reading import GateReader, plain_gate_states
from easyedit_dualedit.train.plain_step import plain_losses
from easyedit_dualedit.train.step import TrainingStep


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    return ads_edit_records(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("family", WATCHING)
def test_losses_are_those_of_whole_forwards(family: str, records: list[Record]):
    tiny = shared(family)
    editor = trained_editor(tiny)
    tiny.model.requires_grad_(False)
    shared_step = TrainingStep(editor)
    config = fast()
    for _ in range(2):  # the second time, features and states are known
        got = shared_step.losses(records, config)
        expected = plain_losses(editor, records, config)
        assert got.by_metric == pytest.approx(expected.by_metric, rel=1e-4)
    tiny.model.requires_grad_(True)
    assert not shared_step.is_plain, "no family needs whole forwards"


@pytest.mark.parametrize("family", WATCHING)
def test_the_gate_reads_the_states_of_whole_forwards(family: str, records: list[Record]):
    editor = trained_editor(shared(family))
    queries = [query for kind in SCOPE for query in scope_queries(records)[kind]]
    reader = GateReader(editor)
    states = reader.read(queries)
    assert not reader.is_plain
    place = queries.index(records[0].request)
    gate, _, vision, _ = plain_gate_states(editor, [records[0].request])
    got = states.of(place, place + 1)
    torch.testing.assert_close(got.gate, gate, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(got.vision, vision, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_a_video_is_decoded_and_seen_by_the_vision_tower_once(
    family: str, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    tiny = shared(family)
    shared_step = TrainingStep(trained_editor(tiny))
    read: Counter[Any] = Counter()
    real_clip = video_frames.read_clip

    def clip(video: Any, *rest: Any) -> Any:
        read[video.source] += 1
        return real_clip(video, *rest)

    monkeypatch.setattr(video_frames, "read_clip", clip)
    shared_step.losses(records[:1], fast())
    assert len(read) == 2 and set(read.values()) == {1}

    def features(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("the vision tower runs again")

    monkeypatch.setattr(type(tiny.model.model), "get_video_features", features)
    for _ in range(2):
        shared_step.losses(records[:1], fast())
    assert set(read.values()) == {1}


@pytest.mark.parametrize("family", ["llava-onevision", "qwen2-vl"])
def test_long_videos_run_alone_and_their_losses_stay(
    family: str, records: list[Record], monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(shared(family))
    videos = [record for record in records if record.request.video is not None] * 2
    expected = TrainingStep(editor).losses(videos, fast())
    monkeypatch.setattr(frozen_part, "VIDEO_TOKENS", 1)
    at_once = _videos_at_once(monkeypatch)
    got = TrainingStep(editor).losses(videos, fast())
    assert got.by_metric == pytest.approx(expected.by_metric, rel=1e-4)
    assert len(at_once) >= 2 and set(at_once) == {1}


def test_memory_grows_with_a_videos_frames_and_each_is_opened_once(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Were there a number for each two of its tokens, four times the frames took 16 times it."""
    # Frames of 27 by 27 patches are 196 tokens, as LLaVA-OneVision's are.
    monkeypatch.setattr(tiny_models, "IMAGE_SIZE", 54)
    monkeypatch.setattr(tiny_models, "PATCH_SIZE", 2)
    tiny = tiny_models.tiny_llava_onevision()
    tiny.processor.num_image_tokens = 27 * 27
    tiny.model.requires_grad_(False)
    opened: Counter[Any] = Counter()
    real = video_frames.open_image

    def open_image(frame: Any) -> Any:
        opened[frame] += 1
        return real(frame)

    monkeypatch.setattr(video_frames, "open_image", open_image)
    config = fast(checkpoint_activations=True, image_locality_weight=0.0)
    peaks = []
    for frames in (4, 16):
        paths = [tmp_path / f"{frames} {place}.png" for place in range(frames)]
        for path in paths:
            picture("red", (28, 28)).save(path)
        record = _record_of(records[0], Video(paths))
        step = TrainingStep(trained_editor(tiny))
        step.losses([record], config)
        step.forget()
        with LiveBytes([*tiny.model.parameters(), *tiny.model.buffers()]) as live:
            step.losses([record], config).total.backward()  # type: ignore[no-untyped-call]
        tiny.model.zero_grad(set_to_none=True)
        peaks.append(live.peak)
        assert {opened[path] for path in paths} == {1}
    assert peaks[1] < 4.2 * peaks[0]


def _record_of(record: Record, video: Video) -> Record:
    """Return a record whose request alone shows something."""
    return replace(
        record,
        request=replace(record.request, image=video),
        text_rephrase=replace(record.text_rephrase, image=None),
        image_rephrase=replace(record.image_rephrase, image=None),
    )


def _videos_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each forward that shows videos adds its records."""
    found: list[int] = []
    real = TrainingStep._read

    def read(step: TrainingStep, *rest: Any) -> Any:
        groups = real(step, *rest)
        for group in groups:
            if group.queries[0].video is not None:
                found.append(len(set(group.record.tolist())))
        return groups

    monkeypatch.setattr(TrainingStep, "_read", read)
    return found
