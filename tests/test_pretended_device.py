"""Where tensors of two devices meet, the pretended device refuses and allows what a real one does.

Where there is a GPU, the same cases run on it.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy
import pytest
import torch
from pretended_device import CAN_PRETEND, PretendedTensor, pretended_device
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.skipif(not CAN_PRETEND, reason="this torch has no devices in Python")


class Pair:
    """Equal tensors on the device and on the CPU."""

    def __init__(self, device: torch.device):
        self.device = device
        self.here = torch.arange(6.0).reshape(2, 3)
        self.there = self.here.to(device)
        self.rows = torch.tensor([1, 0])
        self.rows_there = self.rows.to(device)
        self.one = torch.tensor(2.0)
        self.one_there = self.one.to(device)
        self.mask = self.here > 2
        self.mask_there = self.mask.to(device)


Case = Callable[[Pair], object]

REFUSED: dict[str, Case] = {
    "sum": lambda p: p.there + p.here,
    "comparison": lambda p: p.here < p.there,
    "sum with a number of the device": lambda p: p.here + p.one_there,
    "sum into the CPU": lambda p: p.here.add_(p.one_there),
    "number of the CPU that is written": lambda p: p.one.clone().add_(p.one_there),
    "two numbers of the CPU": lambda p: torch.addcmul(p.there, p.one, p.one),
    "product": lambda p: p.there @ p.here.T,
    "linear": lambda p: functional.linear(p.here, p.there),
    "embedding": lambda p: functional.embedding(p.rows, p.there),
    "joined": lambda p: torch.cat([p.there, p.here]),
    "stacked": lambda p: torch.stack([p.one_there, p.one]),
    "choice between two": lambda p: torch.where(p.mask_there, p.there, p.here),
    "choice by a mask of the CPU": lambda p: torch.where(p.mask, p.there, 0.0),
    "indices of the device": lambda p: p.here[p.rows_there],
    "mask of the device": lambda p: p.here[p.mask_there],
    "written by indices of the device": lambda p: p.here.clone().index_put_((p.rows_there,), p.one),
    "values of the CPU": lambda p: p.there.clone().index_put_((p.rows_there,), p.here),
    "index_select": lambda p: p.there.index_select(0, p.rows),
    "index_add": lambda p: p.there.index_add(0, p.rows, p.there),
    "gather": lambda p: p.there.gather(0, p.rows[:, None]),
    "masked_fill by a mask of the CPU": lambda p: p.there.masked_fill(p.mask, 0.0),
    "masked_fill of the CPU": lambda p: p.here.masked_fill(p.mask, p.one_there),
    "masked_scatter": lambda p: p.there.masked_scatter(p.mask, p.there),
    "isin": lambda p: torch.isin(p.there, p.here),
    "equal": lambda p: torch.equal(p.there, p.here),
    "cross-entropy": lambda p: functional.cross_entropy(p.there, p.rows),
    "attention mask of the CPU": lambda p: functional.scaled_dot_product_attention(
        *[p.there[None, None]] * 3, attn_mask=torch.zeros(2, 2)
    ),
    "generator of the CPU": lambda p: torch.rand(
        2, device=p.device, generator=torch.Generator().manual_seed(0)
    ),
    "numpy": lambda p: p.there.numpy(),
    "array": lambda p: numpy.asarray(p.there),
}
"""What raises, by what it is."""

ALLOWED: dict[str, Case] = {
    "number of the CPU": lambda p: p.there * p.one,
    "number of the CPU first": lambda p: p.one - p.there,
    "number of the CPU, in place": lambda p: p.there.clone().mul_(p.one),
    "number": lambda p: p.there + 1,
    "choice between numbers": lambda p: torch.where(p.mask_there, p.one, 0.0),
    "indices of the CPU": lambda p: p.there[p.rows],
    "mask of the CPU": lambda p: p.there[p.mask],
    "written by indices of the CPU": lambda p: p.there.clone().index_put_((p.rows,), p.one),
    "written by a mask of the CPU": lambda p: p.there.clone().__setitem__(p.mask, 0.0) or p.there,
    "masked_fill with a number of the CPU": lambda p: p.there.masked_fill(p.mask_there, p.one),
    "fill": lambda p: p.there.clone().fill_(p.one),
    "copy to": lambda p: torch.empty_like(p.there).copy_(p.here),
    "to": lambda p: p.here.to(p.device),
    "to as another": lambda p: p.here.to(p.there),
    "made there": lambda p: torch.tensor([[1, 2]], device=p.device),
    "made there of its numbers": lambda p: torch.tensor([p.one_there, 2.0], device=p.device),
    "made like": lambda p: torch.zeros_like(p.there),
    "new": lambda p: p.there.new_tensor([1.0]),
    "range": lambda p: torch.arange(3, device=p.device),
    "drawn": lambda p: torch.rand(2, device=p.device),
}
"""What gives a tensor of the device."""

BACK: dict[str, Case] = {
    "cpu": lambda p: p.there.cpu(),
    "to": lambda p: p.there.to("cpu", torch.float16),
    "copy to": lambda p: torch.empty_like(p.here).copy_(p.there),
    "made here like": lambda p: torch.zeros_like(p.there, device="cpu"),
    "made here of its numbers": lambda p: torch.tensor([float(p.one_there)]),
    "fill": lambda p: p.here.clone().fill_(p.one_there),
}
"""What gives a tensor of the CPU."""


@pytest.fixture(params=["pretended", "cuda"] if torch.cuda.is_available() else ["pretended"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    real = nullcontext(torch.device("cuda", 0))
    with real if request.param == "cuda" else pretended_device() as device:
        yield Pair(device)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_what_a_gpu_refuses_is_refused(pair: Pair, case: Case):
    with pytest.raises((RuntimeError, TypeError)):
        case(pair)


@pytest.mark.parametrize("case", ALLOWED.values(), ids=ALLOWED)
def test_what_a_gpu_allows_is_there(pair: Pair, case: Case):
    assert case(pair).device == pair.device


@pytest.mark.parametrize("case", BACK.values(), ids=BACK)
def test_what_comes_back_is_here(pair: Pair, case: Case):
    assert case(pair).device.type == "cpu"


def test_numbers_are_those_of_the_cpu(pair: Pair):
    assert pair.there.tolist() == pair.here.tolist()
    assert (pair.there.sum().item(), int(pair.rows_there[0]), bool(pair.mask_there.any())) == (
        15.0,
        1,
        True,
    )
    assert torch.equal((pair.there[pair.rows] * pair.one).cpu(), pair.here[pair.rows] * 2)
    changed = pair.there.clone()
    row = changed[1]
    row.add_(1)
    assert changed.tolist() == [[0, 1, 2], [4, 5, 6]]


def test_gradients_lie_where_parameters_do(pair: Pair):
    layer = torch.nn.Linear(3, 2).to(pair.device)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    layer(pair.there).sum().backward()
    assert layer.weight.grad.device == pair.device
    assert layer.weight.grad.tolist() == [[3, 5, 7]] * 2
    torch.nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
    optimiser.step()
    assert not torch.equal(layer.weight, before)
    layer.weight.data = before
    assert layer.weight.tolist() == before.tolist()


def test_nothing_is_left_of_it():
    before = torch.tensor, torch.random.fork_rng, torch.Tensor.to
    with pretended_device() as device:
        there = torch.ones(2, device=device)
        assert isinstance(there, PretendedTensor)
        with torch.random.fork_rng():
            torch.manual_seed(1)
    assert (torch.tensor, torch.random.fork_rng, torch.Tensor.to) == before
    assert not torch.accelerator.is_available()
    assert type(torch.ones(2) + 1) is Tensor
    with pytest.raises(NotImplementedError):
        torch.ones(2).to(device)
