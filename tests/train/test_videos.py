"""Training on videos, sets of pictures, pictures and text: the shared step, caches, the gate."""

from collections import Counter
from typing import Any

import pytest
import torch
from tiny_ads_edit import ads_edit_records
from tiny_data import fast
from tiny_editors import shared, trained_editor
from tiny_videos import WATCHING

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import SCOPE, scope_queries
from easyedit_dualedit.model import video_frames
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
    gate, _, vision = plain_gate_states(editor, [records[0].request])
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
