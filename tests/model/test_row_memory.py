"""Memory is that which the system says is free, and rows take about what is reckoned."""

import sys

import psutil
import pytest
import torch
from tiny_models import TinyModel

from easyedit_dualedit.model.row_memory import bytes_of_row, free_bytes, rows_that_fit

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in a file")
def test_free_memory_is_that_of_the_system():
    free = free_bytes(CPU)
    assert free is not None
    assert abs(free - psutil.virtual_memory().available) < 500e6
    assert free_bytes(torch.device("meta")) is None


def test_rows_of_twice_the_length_take_twice_as_much_or_more(llava: TinyModel):
    inputs = {"input_ids": torch.zeros(2, 100, dtype=torch.long)}
    short, long = (bytes_of_row(llava.model, length, inputs) for length in (100, 200))
    width = llava.model.config.get_text_config().hidden_size
    assert 100 * width * 4 * 10 < short < 100 * width * 4 * 40
    assert 2 * short <= long < 3 * short
    pixels = torch.zeros(2, 3, 10, 10)
    with_pixels = bytes_of_row(llava.model, 100, {**inputs, "pixel_values": pixels})
    assert with_pixels >= short + 3 * 10 * 10 * 4


def test_where_nobody_tells_what_is_free_the_most_are_taken(llava: TinyModel):
    inputs = {"input_ids": torch.zeros(2, 100, dtype=torch.long)}
    assert rows_that_fit(llava.model, torch.device("meta"), inputs, 16) == 16
