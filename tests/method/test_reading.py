"""Edits are read as many at once as fit into memory, and are the same however many that are."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.reading import read_some_at_a_time
from easyedit_dualedit.model import row_budget
from easyedit_dualedit.model.inputs import Batch, Query
from easyedit_dualedit.model.row_budget import bytes_of_token


@pytest.fixture
def editor(llava: TinyModel) -> DualEditor:
    return trained_editor(llava, gate={"kind": "cosine", "threshold": 0.9999})


def requests(lengths: Sequence[int]) -> list[Query]:
    return [
        Query("What is " + "it " * length + "?", picture("red", (30 + place, 40)), "blue circle")
        for place, length in enumerate(lengths)
    ]


def read(editor: DualEditor, asked: Sequence[Query]) -> tuple[list[int], list[EditSignal]]:
    """Return how many rows each forward had, and all that was read."""
    rows: list[int] = []
    real = editor.read_batch

    def counted(batch: Batch, part: Sequence[Query]) -> list[EditSignal]:
        signals = real(batch, part)
        rows.append(batch.size)
        return signals

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor, "read_batch", counted)
        parts = list(read_some_at_a_time(editor, asked))
    assert [each for part, _ in parts for each in part] == list(asked)
    signals = [each for _, signals in parts for each in signals]
    assert [signal.request for signal in signals] == list(asked)
    return rows, signals


def free(monkeypatch: pytest.MonkeyPatch, editor: DualEditor, rows: float, like: Query) -> None:
    """Leave memory for so many rows like a request."""
    length = editor.encoder.encode([like]).inputs["input_ids"].shape[1]
    each = bytes_of_token(editor.backbone) * length
    monkeypatch.setattr(row_budget, "free_bytes", lambda _: int(rows * each / row_budget._SHARE))


def same(one: EditSignal, other: EditSignal) -> None:
    for layer, states in one.states.items():
        torch.testing.assert_close(states, other.states[layer], rtol=1e-4, atol=1e-5)


def test_a_part_has_as_many_rows_as_fit(editor: DualEditor, monkeypatch: pytest.MonkeyPatch):
    asked = requests([1] * 20)
    rows, whole = read(editor, asked)
    assert rows == [16, 4]
    free(monkeypatch, editor, 5.5, asked[0])
    rows, some = read(editor, asked)
    assert rows == [5, 5, 5, 1, 4]
    for one, other in zip(whole, some, strict=True):
        same(one, other)


def test_long_rows_are_fewer_than_short_ones(editor: DualEditor, monkeypatch: pytest.MonkeyPatch):
    asked = requests([1] * 16 + [60] * 4)
    free(monkeypatch, editor, 8.5, asked[0])
    rows, _ = read(editor, asked)
    assert rows[:2] == [8, 8] and max(rows[2:]) < 4


def test_one_row_is_tried_however_little_is_free(
    editor: DualEditor, monkeypatch: pytest.MonkeyPatch
):
    asked = requests([1, 2, 3])
    free(monkeypatch, editor, 0, asked[0])
    assert read(editor, asked)[0] == [1, 1, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_half_as_many_are_tried_where_the_memory_is_used_up(
    editor: DualEditor, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    real = editor.read_batch
    tried: list[int] = []

    def full(batch: Any, part: Sequence[Query]) -> list[EditSignal]:
        tried.append(batch.size)
        if batch.size > 3:
            raise error
        return real(batch, part)

    monkeypatch.setattr(editor, "read_batch", full)
    assert read(editor, requests([1] * 7))[0] == [3, 3, 1]
    assert tried == [7, 3, 3, 1], "what was too much once is not tried again"


def test_other_errors_and_a_single_row_without_room_are_raised(
    editor: DualEditor, monkeypatch: pytest.MonkeyPatch
):
    def broken(*_: Any) -> None:
        raise error

    monkeypatch.setattr(editor, "read_batch", broken)
    for error, asked in (
        (RuntimeError("the shapes differ"), requests([1, 1])),
        (torch.OutOfMemoryError("CUDA out of memory"), requests([1])),
    ):
        with pytest.raises(type(error), match=str(error)):
            read(editor, asked)


def test_a_request_without_a_target_is_told_before_any_is_read(
    editor: DualEditor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(editor, "read_batch", None)
    with pytest.raises(DataError, match="has no target"):
        read(editor, [*requests([1]), Query("What is it?", picture())])
