"""Rows that begin alike, laid into one: every token sees its own row, and no other."""

import random
from collections.abc import Hashable

import pytest
import torch
from tiny_editors import shared
from torch import Tensor

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import TokenLayout
from easyedit_dualedit.train.shared_rows import (
    CommonPrefixes,
    SharedRows,
    UnshareableError,
    common_prefixes,
    require_shareable,
)

PICTURE = 9
"""The image token."""

ROWS = [
    # group, prompt, answer
    ("a", [1, 2, PICTURE, PICTURE, 3, 4, 5], [6]),
    ("a", [1, 2, PICTURE, PICTURE, 3, 7], [6, 6, 6]),
    ("b", [1, 2, PICTURE, PICTURE, 3, 4, 5], []),
    ("a", [1, 2, PICTURE, PICTURE, 3, 4], [5]),
]


def padded(rows: list[tuple[Hashable, list[int], list[int]]]) -> tuple[Tensor, TokenLayout]:
    """Return token ids, padded on the left, and their layout."""
    width = max(len(prompt) + len(answer) for _, prompt, answer in rows)
    ids = torch.tensor([[0] * (width - len(p) - len(a)) + p + a for _, p, a in rows])
    gate = torch.tensor([width - len(answer) - 1 for _, _, answer in rows])
    real, vision = ids > 0, ids == PICTURE
    return ids, TokenLayout.of(ids, real, gate, vision, None)


def found_in(rows: list[tuple[Hashable, list[int], list[int]]]) -> list[int]:
    ids, layout = padded(rows)
    return common_prefixes([ids, (ids == PICTURE).long()], layout, [group for group, _, _ in rows])


def expected_of(rows: list[tuple[Hashable, list[int], list[int]]]) -> list[int]:
    """Return what `common_prefixes` has to, found token by token."""
    found = []
    for group, _, _ in rows:
        prompts = [prompt for other, prompt, _ in rows if other == group]
        most = min(len(prompt) for prompt in prompts) - 1
        count = 0
        while count < most and len({prompt[count] for prompt in prompts}) == 1:
            count += 1
        seen = PICTURE in prompts[0][:count] and PICTURE not in prompts[0][count:]
        found.append(count if len(prompts) > 1 and seen else 0)
    return found


def test_what_rows_of_a_group_have_in_common():
    assert found_in(ROWS) == [5, 5, 0, 5]


def test_the_last_prompt_token_is_never_shared():
    same = ("a", [1, PICTURE, 3], [4])
    assert found_in([same, same]) == [2, 2]


@pytest.mark.parametrize(
    "prompts",
    [
        ([1, 2, 3], [1, 2, 4]),  # no picture
        ([1, PICTURE, 2, PICTURE, 3], [1, PICTURE, 4, PICTURE, 3]),  # not all of it
        ([2, PICTURE, 3], [1, PICTURE, 3]),  # nothing
    ],
)
def test_nothing_is_shared_without_all_image_tokens(prompts: tuple[list[int], list[int]]):
    assert found_in([("a", prompt, []) for prompt in prompts]) == [0, 0]


def test_any_rows_share_what_a_search_by_token_finds():
    draw = random.Random(0)
    kinds = set()
    for _ in range(200):
        rows = []
        for _ in range(draw.randint(1, 6)):
            start = [1] * draw.randint(0, 2) + [PICTURE] * draw.randint(0, 2)
            prompt = start + [draw.choice([2, 3]) for _ in range(draw.randint(1, 4))]
            rows.append((draw.choice("ab"), prompt, [5] * draw.randint(0, 3)))
        found = found_in(rows)
        assert found == expected_of(rows), rows
        kinds.add(any(found))
    assert kinds == {True, False}


def sharing_of(rows: list[int]) -> tuple[Tensor, TokenLayout, SharedRows]:
    ids, layout = padded(ROWS)
    groups = [group for group, _, _ in ROWS]
    prefixes = CommonPrefixes(layout.real.sum(1).tolist(), groups, [5, 5, 0, 5], [4] * 4)
    return ids, layout, SharedRows.of(rows, prefixes, ids.shape[1])


@pytest.mark.parametrize(
    ("rows", "count"), [([0, 1, 2, 3], 2), ([3, 1], 1), ([0, 2], 2), ([2], 1), ([2, 3, 0], 2)]
)
def test_a_token_sees_those_before_it_in_its_row_and_no_other(rows: list[int], count: int):
    ids, layout, laid = sharing_of(rows)
    assert len(laid.row) == count and laid.saves == (count < len(rows))
    assert torch.equal(laid.unpack(laid.pack(ids))[layout.real[rows]], ids[rows][layout.real[rows]])
    allowed = laid.allowed()
    used = set()
    for index, row in enumerate(rows):
        own = [int(laid.slot[index, at]) for at in layout.real[row].nonzero()[:, 0]]
        home = int(laid.home[index])
        used |= {(home, slot) for slot in own}
        for place, slot in enumerate(own):
            seen = allowed[home, slot].nonzero()[:, 0].tolist()
            assert seen == sorted(own[: place + 1]), (row, place)
            assert int(laid.place[home, slot]) == place
    assert used == {(int(p), int(w)) for p, w in laid.real.nonzero()}
    assert laid.before == int(laid.marked(layout.text | layout.answer).any(0).nonzero()[0])


def test_a_shared_row_is_as_long_as_what_differs():
    _, layout, laid = sharing_of([0, 1, 2, 3])
    assert int(laid.real.sum()) == int(layout.real.sum()) - 2 * 5
    assert torch.equal(laid.marked(layout.vision).sum(1), torch.tensor([2, 2]))


def test_positions_are_found_where_they_stand_in_a_shared_row():
    ids, layout, laid = sharing_of([1, 3])
    at = torch.zeros_like(layout.real[:2])
    at[0, -1] = at[1, -2] = True
    packed = laid.pack(ids)
    assert packed[laid.places(at)].tolist() == [ids[1, -1], ids[3, -2]]


def test_calls_that_do_not_fit_are_refused():
    backbone = Backbone.of(shared("llava").model)
    ids, layout, laid = sharing_of([0, 1, 2, 3])
    call = {"inputs_embeds": torch.zeros(*ids.shape, 2), "attention_mask": layout.real.long()}
    require_shareable(call, backbone)
    made = laid.call(call | {"position_ids": None, "use_cache": False}, backbone, done=True)
    assert made["inputs_embeds"].shape[:2] == laid.row.shape
    assert torch.equal(made["position_ids"], laid.place) and made["use_cache"] is False
    for more in ({"biases": torch.zeros(3)}, {"parts": [torch.zeros(2)]}):
        with pytest.raises(UnshareableError, match=next(iter(more))):
            laid.call(call | more, backbone, done=True)
    with pytest.raises(UnshareableError, match="causally"):
        require_shareable(call | {"attention_mask": layout.real[:, None, None]}, backbone)
