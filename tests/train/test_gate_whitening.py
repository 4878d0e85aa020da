"""The map that a gate's projection sees its inputs through, and its folding into a layer."""

import pytest
import torch
from torch import nn

from easyedit_dualedit.train.gate_whitening import Whitening


def inputs_of(count: int, width: int, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return requests, and how two rephrases of each differ from it."""
    torch.manual_seed(0)
    return torch.randn(count, width), torch.randn(2 * count, width) * noise


def test_a_direction_in_which_rephrases_differ_much_is_made_small():
    noise = torch.full((100,), 0.1)
    noise[7] = 30.0
    requests, differences = inputs_of(2000, 100, noise)
    spread = Whitening.of(requests, differences).apply(requests).std(0)
    # It has all of the variance, 100 times the mean; once the mean is added, 101 times.
    assert float(spread[7]) == pytest.approx(101**-0.5, rel=0.1)
    others = torch.cat([spread[:7], spread[8:]])
    torch.testing.assert_close(others, torch.ones(99), rtol=0.1, atol=0)


def test_a_folded_layer_takes_inputs_as_they_are():
    requests, differences = inputs_of(50, 6, torch.ones(6))
    whitening = Whitening.of(requests, differences)
    layer = nn.Linear(6, 3)
    expected = layer(whitening.apply(requests))
    whitening.fold(layer)
    torch.testing.assert_close(layer(requests), expected, rtol=1e-4, atol=1e-5)


def test_rephrases_that_do_not_differ_change_nothing_but_the_mean():
    whitening = Whitening.of(*inputs_of(50, 6, torch.zeros(6)))
    torch.testing.assert_close(whitening.factor, torch.eye(6))
