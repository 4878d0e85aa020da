"""Packing: fewer bytes, close to the same numbers, whatever the numbers are."""

import pytest
import torch

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.method.packing import PRECISIONS, Packed

TENSOR = torch.randn(2, 8, 5, 16, generator=torch.Generator().manual_seed(0)) * 3


def test_bytes_are_those_of_the_precision():
    count = TENSOR.numel()
    sizes = [Packed.of(TENSOR, precision).stored_bytes for precision in PRECISIONS]
    assert sizes == [4 * count, 2 * count, count + 4 * count // 16]


@pytest.mark.parametrize(
    ("precision", "error"), [("float32", 0.0), ("float16", 1e-3), ("int8", 9e-3)]
)
def test_numbers_stay_close(precision, error):
    found = Packed.of(TENSOR, precision).unpacked()
    assert found.dtype == torch.float32
    largest = TENSOR.abs().amax(-1, keepdim=True)
    assert float(((found - TENSOR).abs() / largest).max()) <= error


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", [0.0, 1e-6, 1.0, 1e4, 1e6])
def test_every_size_of_number_stays_finite(precision, factor):
    found = Packed.of(TENSOR * factor, precision).unpacked()
    assert bool(found.isfinite().all())
    if factor in (0.0, 1.0):
        torch.testing.assert_close(found, TENSOR * factor, rtol=0, atol=0.12 * factor)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_packing_what_was_unpacked_changes_nothing_more(precision):
    once = Packed.of(TENSOR, precision).unpacked()
    if precision != "int8":
        assert torch.equal(Packed.of(once, precision).unpacked(), once)
    torch.testing.assert_close(Packed.of(once, precision).unpacked(), once, rtol=0.02, atol=0.1)


def test_gradients_do_not_follow_into_storage():
    tensor = TENSOR.clone().requires_grad_()
    assert not any(
        Packed.of(tensor, precision).unpacked().requires_grad for precision in PRECISIONS
    )


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match="float32, float16, int8"):
        Packed.of(TENSOR, "int4")  # type: ignore[arg-type]
