"""What training, gate and evaluation take of a GPU at 7B size, counted tensor by tensor."""

import pytest
import torch

from benchmarks.live_bytes import LiveBytes
from benchmarks.memory_table import BOUND, FAMILIES, GIB, Family, peaks
from easyedit_dualedit.train.config import CACHE_BYTES

_BESIDES = 0.6 * GIB + 2 * CACHE_BYTES
"""Adapters with Adam's moments, and what a training keeps between steps."""


def test_tensors_count_for_as_long_as_they_live_and_views_do_not():
    weight = torch.zeros(100, 100)
    with LiveBytes([weight]) as live:
        made = weight.t() + 1
        assert live.now == 40_000
        part = made[:10]
        del made
        assert live.now == 40_000, "a part keeps all of it"
        del part
        assert live.now == 0 and live.peak == 40_000
        torch.ones(1000, device="meta", dtype=torch.bfloat16)
    assert live.peak == 40_000


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_7b_model_fits_into_24_gib(family: Family):
    found = peaks(family)
    assert 13 * GIB < found["weights"] < 16 * GIB
    assert found["rows"] >= (8 if family.frames is None else 1)
    stages = {n: v for n, v in found.items() if n.startswith(("pict", "eval", "gate"))}
    assert len(stages) == 4 and max(stages.values()) <= BOUND
    # With the batch and the recomputation of its shipped YAML.
    assert found["train"] + _BESIDES <= BOUND
    # A batch of 4 is packed to it, whatever the model.
    assert found["train"] <= found["train, 4 records, as packed"] + _BESIDES <= BOUND
    # Rows are counted in tokens: what passes the vision tower for them never takes the most.
    assert found["pictures"] < found["train"]
    # The budget is used, and not only kept; one video of 64 frames is too long for two.
    assert found["evaluate, free answers"] > found["weights"] + 2 * GIB
