"""Scenes in motion: what happens is what the frames show, and the splits share nothing."""

import json
import random
from pathlib import Path

import pytest

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.motion import (
    CHANGES,
    FRAMES,
    draw_motion,
    false_answer,
    shifted,
    write_motion,
)


def test_the_answer_is_what_changes():
    source = random.Random(0)
    seen = set()
    for _ in range(60):
        motion = draw_motion(source, lambda _scene: True)
        seen.add(motion.change)
        before, after = set(motion.before.objects), set(motion.after.objects)
        (new,) = after - before
        expected = {
            "moves": f"it moves to the {new.region}",
            "turns": f"it turns {new.colour}",
            "appears": f" {new.name} appears",
        }[motion.change]
        assert motion.answer.endswith(expected)
        assert len(before - after) == (motion.change != "appears")
        wrong = false_answer(motion, source)
        assert wrong != motion.answer and wrong.split()[0] in ("it", "a", "an")
        frames = [frame.tobytes() for frame in motion.frames(3)]
        assert len(frames) == FRAMES and len(set(frames)) == 2
    assert seen == set(CHANGES)


def test_a_shifted_motion_has_the_same_answer():
    source = random.Random(1)
    for _ in range(60):
        motion = draw_motion(source, lambda _scene: True)
        other = shifted(motion, source)
        assert (other.answer, other.subject) == (motion.answer, motion.subject)
        changed = set(motion.after.objects) - set(motion.before.objects)
        assert changed == set(other.after.objects) - set(other.before.objects)


def test_records_are_read_and_the_same_everywhere(tmp_path: Path):
    path = write_motion(tmp_path / "one", "eval", 5)
    again = write_motion(tmp_path / "two", "eval", 5)
    assert path.read_bytes() == again.read_bytes()
    records = load_records(path, tmp_path / "one" / "images")
    assert all(record.request.video is not None for record in records)
    assert len(records[0].request.files) == FRAMES
    training = json.loads(write_motion(tmp_path / "one", "train", 5).read_text())
    facts = {item["loc"] for item in training}
    assert facts.isdisjoint(record.text_locality.prompt for record in records)


@pytest.mark.parametrize("count", [0, 10**6, True, "5"])
def test_wrong_counts_are_refused(tmp_path: Path, count: object):
    with pytest.raises(DataError, match="count = "):
        write_motion(tmp_path, "eval", count)  # type: ignore[arg-type]
