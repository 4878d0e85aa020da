"""Thresholds for many edits: what they trade, against what counting says."""

import pytest
import torch

from easyedit_dualedit.errors import CalibrationError
from easyedit_dualedit.train.gate_thresholds import ScopedSimilarities, thresholds_by_count

EDITS = 200


def kinds_of(inside: float, outside: float, spread: float = 0.1) -> list[ScopedSimilarities]:
    source = torch.Generator().manual_seed(0)

    def similarities(own: float) -> torch.Tensor:
        found = spread * torch.randn(EDITS, EDITS, generator=source)
        found += own * torch.eye(EDITS)
        return found.clamp(-1, 1)

    everywhere = torch.ones(EDITS, dtype=torch.bool)
    return [
        ScopedSimilarities(True, similarities(inside), everywhere),
        ScopedSimilarities(False, similarities(outside), everywhere),
    ]


def test_a_threshold_lies_between_what_should_open_and_what_should_not():
    found = thresholds_by_count(kinds_of(0.9, 0.2, 0.01), (1,), false_open_rate=1.0)[1]
    assert 0.25 < found.threshold < 0.85
    assert found.true_open_rate == 1.0 and found.false_open_rate == 0.0


def test_more_edits_need_a_higher_threshold():
    counts = (1, 10, 100, 1000)
    found = thresholds_by_count(kinds_of(0.7, 0.0), counts, false_open_rate=1.0)
    thresholds = [found[count].threshold for count in counts]
    assert thresholds == sorted(thresholds) and thresholds[-1] > thresholds[0] + 0.05
    assert found[1000].false_open_rate < 0.1


def test_the_expected_rates_are_those_that_counting_finds():
    kinds = kinds_of(0.45, 0.1)
    count = 50
    found = thresholds_by_count(kinds, (count,), false_open_rate=1.0)[count]
    opened, wrongly = [], []
    for start in range(0, EDITS, count):
        part = slice(start, start + count)
        inside, outside = (kind.similarity[part, part] for kind in kinds)
        best = inside.max(1)
        own = best.indices == torch.arange(count)
        opened += (own & (best.values >= found.threshold)).tolist()
        wrongly += (outside.amax(1) >= found.threshold).tolist()
    assert found.true_open_rate == pytest.approx(sum(opened) / EDITS, abs=0.06)
    assert found.false_open_rate == pytest.approx(sum(wrongly) / EDITS, abs=0.06)


def test_an_edit_competes_with_all_but_itself():
    """Three edits, of which one is more alike than the own, or alike without a right to be."""
    nothing, most = -1.0, 0.95

    def kind(in_scope: bool, own: float, others: tuple[float, float]) -> ScopedSimilarities:
        similarity = torch.full((3, 3), own)
        for row in range(3):
            similarity[row, (row + 1) % 3], similarity[row, (row + 2) % 3] = others
        return ScopedSimilarities(in_scope, similarity, torch.ones(3, dtype=torch.bool))

    counts = (1, 2, 3)
    rivalled = [kind(True, 0.9, (most, nothing)), kind(False, 0.0, (0.3, 0.3))]
    found = thresholds_by_count(rivalled, counts, false_open_rate=1.0)
    assert [found[count].true_open_rate for count in counts] == [1.0, 0.5, 0.25]
    assert [found[count].false_open_rate for count in counts] == [0.0, 0.0, 0.0]
    misled = [kind(True, 0.9, (nothing, nothing)), kind(False, 0.0, (most, nothing))]
    found = thresholds_by_count(misled, counts, false_open_rate=1.0)
    assert [found[count].true_open_rate for count in counts] == [1.0, 1.0, 1.0]
    assert [found[count].false_open_rate for count in counts] == [0.0, 0.5, 0.75]


def test_the_false_open_rate_of_one_edit_is_a_lower_bound():
    kinds = kinds_of(0.5, 0.4)
    strict = thresholds_by_count(kinds, (1,), false_open_rate=0.0)[1]
    loose = thresholds_by_count(kinds, (1,), false_open_rate=1.0)[1]
    assert strict.false_open_rate == 0.0 and strict.threshold > loose.threshold


def test_what_is_unsure_does_not_count():
    kinds = kinds_of(0.9, 0.2, 0.01)
    similarity = kinds[1].similarity.clone()
    other = torch.arange(EDITS).roll(1)
    similarity[torch.arange(EDITS), other] = 0.95
    bad = [kinds[0], ScopedSimilarities(False, similarity, kinds[1].counts)]
    told = [kinds[0], ScopedSimilarities(False, similarity, kinds[1].counts, other)]
    counts = (1000,)
    assert thresholds_by_count(told, counts, false_open_rate=1.0)[1000].false_open_rate < 0.01
    worse = thresholds_by_count(bad, counts, false_open_rate=1.0)[1000]
    assert worse.false_open_rate > 0.5 or worse.true_open_rate < 0.5
    none = ScopedSimilarities(False, similarity, torch.zeros(EDITS, dtype=torch.bool))
    with pytest.raises(CalibrationError, match="in scope and queries out of it"):
        thresholds_by_count([kinds[0], none], (1,), false_open_rate=1.0)


def test_the_nearest_request_counts_as_one_more_kind_out_of_scope():
    """It raises the threshold where that costs less than it keeps shut, and no rate holds it."""
    kinds = kinds_of(0.9, 0.0, 0.01)
    answers = torch.arange(EDITS)
    far = ScopedSimilarities.of_nearest(kinds[1].similarity, answers)
    close = torch.eye(EDITS)
    rows = torch.arange(EDITS)
    close[rows, rows ^ 1] = 0.7
    near = ScopedSimilarities.of_nearest(close, answers)
    assert torch.equal(near.similarity.diagonal(), torch.full((EDITS,), 0.7))
    assert not near.in_scope and near.counts.all()
    without, with_far, with_near = (
        thresholds_by_count(kinds, (1,), false_open_rate=0.0, hardest=[each] if each else [])[1]
        for each in (None, far, near)
    )
    assert without.threshold < 0.7 and with_far.threshold < 0.7 < with_near.threshold < 0.95
    assert with_near.false_open_rate == 0.0 and with_near.right == 1.0
    # A kind in scope that is less alike than the nearest requests costs as much as they do.
    similarity = kinds[0].similarity.clone()
    similarity.fill_diagonal_(0.6)
    mixed = [ScopedSimilarities(True, similarity, kinds[0].counts), kinds[0], kinds[1]]
    found = thresholds_by_count(mixed, (1,), false_open_rate=0.0, hardest=[near])[1]
    assert found.false_open_rate == 0.0 and found.right == pytest.approx(3 / 4)


def test_requests_that_are_answered_alike_are_not_each_others_nearest():
    similarity = torch.tensor([[1.0, 0.9, 0.3], [0.9, 1.0, 0.4], [0.3, 0.4, 1.0]])
    found = ScopedSimilarities.of_nearest(similarity, torch.tensor([7, 7, 8]))
    assert found.similarity.diagonal().tolist() == pytest.approx([0.3, 0.4, 0.4])
    alone = ScopedSimilarities.of_nearest(similarity, torch.tensor([7, 7, 7]))
    assert not alone.counts.any()
    everywhere = torch.ones(3, dtype=torch.bool)
    kinds = [
        ScopedSimilarities(True, similarity, everywhere),
        ScopedSimilarities(False, -similarity, everywhere),
    ]
    found_without, found_with = (
        thresholds_by_count(kinds, (1,), false_open_rate=1.0, hardest=[each] if each else [])[1]
        for each in (None, alone)
    )
    assert found_without == found_with
