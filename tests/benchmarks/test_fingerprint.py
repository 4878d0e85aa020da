"""A fingerprint takes some numbers of each tensor, however large the tensor is."""

from dataclasses import replace

import torch

from benchmarks.fingerprint import Cost, cost_of, milliseconds_of, two_layers
from benchmarks.subject import SHAPES, editor_of

SHAPES_7B = SHAPES["llava-1.5-7b"]
NARROW = replace(SHAPES_7B.narrow(), dtype=torch.bfloat16)


def test_a_fingerprint_of_seven_billion_weights_reads_a_few_of_each_tensor():
    # Of the depth of LLaVA-1.5-7B; that the width does not matter is below.
    cost = cost_of(editor_of(NARROW).backbone)
    assert cost.tensors > 9 * 32 + 16 * 24
    # Some 20 µs each at the most, so that all of it takes a fraction of 2 s.
    assert cost.operations <= 16 * cost.tensors
    # Sixteen places of 8 bytes, and what stands there.
    assert cost.bytes_made <= 1000 * cost.tensors


def test_the_width_of_a_model_costs_its_fingerprint_nothing():
    narrow = two_layers(NARROW)
    wide = replace(narrow, hidden=128, inner=344, tower_hidden=64, tower_inner=256, vocabulary=4096)
    costs: list[Cost] = [cost_of(editor_of(shapes).backbone) for shapes in (narrow, wide)]
    assert costs[0] == costs[1]
    assert min(milliseconds_of(editor_of(narrow).backbone)) > 0
