"""Memory is that which the system says is free."""

import sys

import psutil
import pytest
import torch

from easyedit_dualedit.model.row_memory import free_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells in a file")
def test_free_memory_is_that_of_the_system():
    free = free_bytes(CPU)
    assert free is not None
    assert abs(free - psutil.virtual_memory().available) < 500e6
    assert free_bytes(torch.device("meta")) is None
