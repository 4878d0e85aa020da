"""Targets of a training: compared as the leak audit compares them, as a whole and by words."""

from pathlib import Path

import pytest
from tiny_data import write_data

from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.data.training_targets import TrainingTargets, targets_of


@pytest.mark.parametrize(
    ("target", "has", "has_words"),
    [
        ("a red kite", True, True),
        (" A Red\nKITE ", False, True),
        ("A RED KITE\n", True, True),
        ("Lisbon", True, True),
        ("red", False, True),
        ("kite lisbon", False, True),
        ("a blue kite", False, False),
        ("a red kite.", False, False),
    ],
)
def test_a_target_is_seen_as_a_whole_or_in_words(target: str, has: bool, has_words: bool):
    trained = TrainingTargets.of(["a red kite ", "Lisbon", "lisbon"])
    assert trained.targets == {"a red kite", "lisbon"}
    assert (trained.has(target), trained.has_words(target)) == (has, has_words)


def test_nothing_was_seen_in_no_training():
    assert not TrainingTargets.of([]).has("red")
    assert not TrainingTargets.of([]).has_words("red")


def test_targets_of_records_are_sorted_and_each_is_there_once(tmp_path: Path):
    records = load_records(write_data(tmp_path), tmp_path)
    found = targets_of([*records, *records])
    assert found == tuple(sorted({str(r.request.target).strip().casefold() for r in records}))
