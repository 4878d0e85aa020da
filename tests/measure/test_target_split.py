"""Edits by whether their target was seen in training: each counts where it belongs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_data import write_data

from easyedit_dualedit.data.records import METRICS, Record, load_records
from easyedit_dualedit.data.training_targets import TrainingTargets
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.measure.target_split import TargetSplit, told

TRAINED = TrainingTargets.of(["red", "top left"])
TARGETS = ("red", "Top left ", "left", "blue", "top right")


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Records 0, 10, 20, ...: seen, seen, made of words seen, new, with a new word."""
    loaded = load_records(write_data(tmp_path, len(TARGETS)), tmp_path)
    return [
        replace(record, index=10 * place, request=replace(record.request, target=target))
        for place, (record, target) in enumerate(zip(loaded, TARGETS, strict=True))
    ]


def values(number: float, names: tuple[str, ...] = METRICS) -> dict[str, float]:
    return dict.fromkeys(names, number)


def test_records_fall_into_groups_by_their_index(records: list[Record]):
    split = TargetSplit.of(records, TRAINED, "known from a test")
    assert split.seen == (0, 10)
    assert split.unseen == (20, 30, 40)
    assert split.new_word == (30, 40)
    assert TargetSplit.from_dict(split.to_dict()) == split
    assert told(split) == {"source": "known from a test", "seen": 2, "unseen": 3, "new_word": 2}
    assert told("nobody knows") == {"absent": "nobody knows"}


def test_each_group_has_the_numbers_of_its_records_alone(records: list[Record]):
    split = TargetSplit.of(records, TRAINED, "")
    reached = {0: 1.0, 10: 0.0, 20: 1.0, 30: 0.0, 40: 0.0}
    by_index: dict[int, Any] = {
        index: {"generate": values(value), "visedit": values(value / 2), "specificity": {"RI": 1.0}}
        for index, value in reached.items()
    }
    found = split.means(by_index)
    assert list(found) == ["generate", "visedit"]  # nothing else asks for the target
    expected = {"seen": [1.0, 0.0], "unseen": [1.0, 0.0, 0.0], "new_word": [0.0, 0.0]}
    for group, numbers in expected.items():
        assert list(found["generate"][group]) == list(METRICS[:3])
        for metric in METRICS[:3]:
            assert found["generate"][group][metric] == interval(numbers).to_dict()


def test_answers_that_follow_from_the_target_are_split_where_a_record_has_them(
    records: list[Record],
):
    split = TargetSplit.of(records, TRAINED, "")
    shares = {"picture_old": 0.0, "picture_new": 1.0, "picture_neither": 0.0}
    by_index: dict[int, Any] = {
        0: {"portability": {"exact_match": 1.0, "token_accuracy": 1.0}},
        10: {"binding": {"text_untouched": 1.0}},
        20: {"binding": {"beside_untouched": 1.0}},
        30: {"binding": {"text_untouched": 1.0, **shares}},
    }
    found = split.means(by_index)
    assert list(found["portability"]) == ["seen"]
    assert found["portability"]["seen"]["exact_match"]["n"] == 1
    # The first record of a group may ask less than the others; what compares is not split.
    assert list(found["binding"]) == ["unseen", "new_word"]
    assert list(found["binding"]["unseen"]) == list(shares)
    assert found["binding"]["unseen"]["picture_new"]["n"] == 1


def test_groups_without_records_and_metrics_that_were_not_measured_are_left_out(
    records: list[Record],
):
    split = TargetSplit.of(records[:2], TRAINED, "")
    by_index = {record.index: {"easyedit": values(1.0, ("reliability",))} for record in records}
    found = split.means(by_index)
    assert list(found["easyedit"]) == ["seen"]
    assert list(found["easyedit"]["seen"]) == ["reliability"]
    assert split.means({}) == {}
