"""Loaded tensors are what they should be."""

import pytest
import torch
from torch import Tensor

from easyedit_dualedit.storage.tensor_check import Expected, problems, told


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(2, 3), None),
        (torch.zeros(2, 3, dtype=torch.bfloat16), None),
        (torch.zeros(2, 4), "has shape [2, 4], not [any, 3]"),
        (torch.zeros(3), "has shape [3], not [any, 3]"),
        (torch.zeros(2, 3, dtype=torch.int8), "holds int8"),
        (torch.zeros(2, 3, dtype=torch.bool), "holds bool"),
        (torch.zeros(2, 3, dtype=torch.complex64), "holds complex64"),
        (torch.full((2, 3), torch.nan), "holds 6 values that are no numbers"),
        (torch.tensor([[1.0, torch.inf, 2.0]]), "holds 1 values that are no numbers"),
    ],
)
def test_dtype_shape_and_numbers(tensor: Tensor, said: str | None):
    problem = Expected((None, 3)).problem(tensor)
    assert problem is None if said is None else said in str(problem)


def test_nan_where_it_may_stand_and_scales_above_zero():
    unknown = torch.tensor([torch.nan, 0.5])
    assert Expected((2,), may_be_nan=True).problem(unknown) is None
    assert "no numbers" in str(Expected((1,), may_be_nan=True).problem(torch.tensor([-torch.inf])))
    assert "above zero" in str(Expected((2,), is_positive=True).problem(torch.tensor([1.0, 0.0])))


def test_names_are_compared_and_few_are_told():
    wanted = {name: Expected((1,)) for name in "abcde"}
    lines = problems({"a": torch.zeros(1), "z": torch.zeros(1)}, wanted)
    assert lines == [*(f"{name} is missing" for name in "bcde"), "z is not expected"]
    assert told(lines) == "b is missing; c is missing; d is missing and 2 more"
