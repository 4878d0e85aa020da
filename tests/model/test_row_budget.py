"""Rows share forwards within a budget of tokens, which halves where memory runs out."""

import random

import pytest
import torch
from tiny_models import TinyModel

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.row_bytes import bytes_of_token
from easyedit_dualedit.model.row_memory import allowed_memory


def padded(part: list[int], lengths: list[int]) -> int:
    return len(part) * max(lengths[row] for row in part)


def test_parts_hold_every_row_once_are_within_the_budget_and_mostly_no_padding():
    source = random.Random(0)
    for _ in range(50):
        lengths = [source.choice((12, 20, 600, 640)) for _ in range(source.randint(1, 40))]
        parts = RowBudget(2000).parts(lengths)
        assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
        for part in parts:
            assert len(part) == 1 or padded(part, lengths) <= 2000
            assert padded(part, lengths) <= 2 * sum(lengths[row] for row in part)


def test_a_row_that_is_longer_than_the_budget_stands_alone():
    assert RowBudget(10).parts([50, 4, 4]) == [[1, 2], [0]]


class SmallMemory:
    """Stands in for a device that has no room for more than some tokens."""

    def __init__(self, lengths: list[int], most: int):
        self._lengths, self._most = lengths, most
        self.done: list[int] = []
        self.tried: list[int] = []

    def __call__(self, rows: list[int]) -> None:
        self.tried.append(len(rows))
        if padded(rows, self._lengths) > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.done += rows


def test_running_out_of_memory_halves_the_rows_and_goes_on(caplog: pytest.LogCaptureFixture):
    lengths = [100] * 24
    budget, work = RowBudget(1600), SmallMemory(lengths, 500)
    budget.run(range(24), lengths, work)
    assert sorted(work.done) == list(range(24))
    assert budget.tokens == 400 and "400 tokens" in caplog.text
    # It has learnt: the next rows are not tried in vain.
    work.tried.clear()
    budget.run(range(8), lengths, work)
    assert work.tried == [4, 4]


def test_a_single_row_without_room_and_other_errors_are_told():
    work = SmallMemory([100], 50)
    with pytest.raises(torch.OutOfMemoryError):
        RowBudget(1000).run([0], [100], work)

    def fails(_rows: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        RowBudget(1000).run([0, 1], [100, 100], fails)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_items_that_share_a_forward_are_halved_and_stay_in_order(most: int):
    done: list[str] = []

    def work(items: list[str]) -> None:
        if len(items) > most:
            raise MemoryError
        done.extend(items)

    budget = RowBudget(1000)
    budget.run_together("abcdefgh", work)
    assert "".join(done) == "abcdefgh"
    assert (budget.tokens < 1000) == (most < 8)
    with pytest.raises(MemoryError):
        RowBudget(1000).run_together("ab", lambda _: (_ for _ in ()).throw(MemoryError()))


def test_the_budget_follows_from_the_memory_that_is_allowed(tiny: TinyModel):
    backbone = Backbone.of(tiny.model)
    weights = sum(p.numel() * p.element_size() for p in tiny.model.parameters())
    each = bytes_of_token(backbone)
    with allowed_memory(weights + 1000 * each):
        assert RowBudget.of(backbone).tokens == 600
    assert RowBudget.of(backbone).tokens == 8192
    with allowed_memory(weights // 2), pytest.raises(BackboneError, match="the weights alone"):
        RowBudget.of(backbone)


def test_a_training_has_room_for_fewer_tokens_and_for_more_that_run_again(tiny: TinyModel):
    backbone = Backbone.of(tiny.model)
    weights = sum(p.numel() * p.element_size() for p in tiny.model.parameters())
    with allowed_memory(weights + 10_000_000):
        read = RowBudget.of(backbone).tokens
        first, last = 0, len(backbone.layers) - 2
        low, again, high = (
            RowBudget.for_training(backbone, layer, recomputes=recomputes).tokens
            for layer, recomputes in ((first, False), (first, True), (last, False))
        )
    assert low < again <= high < read
    # Long and short records share a step, as far as there is room.
    with allowed_memory(weights + 10_000_000):
        budget = RowBudget.for_training(backbone, first, recomputes=False)
    assert budget.parts([1, low // 2]) == [[0, 1]]
