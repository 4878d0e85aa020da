"""Features of pictures: through the vision tower once, and those that the model computes itself."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, shared, trained_editor
from tiny_models import TinyModel
from torch import Tensor

from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train import frozen_vision as module
from easyedit_dualedit.train.frozen_vision import Vision
from easyedit_dualedit.train.picture_features import Features, form_of, key_of, read_features

RED = request_of()
BLUE = request_of(colour="blue")
BLIND = Query("Where is the star?", None, "top left")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return how many queries each pass through the vision tower looks at from now on."""
    seen: list[int] = []

    def noting(model: Any, inputs: dict[str, Any]) -> Features:
        seen.append(len(inputs["input_ids"]))
        return read_features(model, inputs)

    monkeypatch.setattr(module, "read_features", noting)
    return seen


def ask(
    vision: Vision, queries: Sequence[Query], known: Sequence[Any] | None = None
) -> list[Features | None]:
    keys = [key_of(query) for query in queries]
    return vision.features(queries, keys, known or [None] * len(queries), {})


def numbers(features: Features | None) -> list[Tensor]:
    assert features is not None
    flat: list[Tensor] = []
    for value in features.values.values():
        flat += [value] if isinstance(value, Tensor) else torch.utils._pytree.tree_leaves(value)
    return flat


def test_features_are_those_of_the_picture_alone(every: TinyModel):
    encoder = trained_editor(every).encoder
    queries = [RED, BLUE, RED]
    found = ask(Vision(encoder, 2**24), queries)
    for query, one in zip(queries, found, strict=True):
        batch = encoder.encode([query], with_target=False)
        own = read_features(every.model, dict(batch.inputs))
        for got, expected in zip(numbers(one), numbers(own), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(numbers(found[0])[0], numbers(found[1])[0])


def test_a_picture_is_looked_at_once_and_new_ones_together(llava: TinyModel, looks: list[int]):
    vision = Vision(trained_editor(llava).encoder, 2**24)
    first = ask(vision, [RED, BLIND, BLUE, RED])
    assert looks == [2]
    assert first[1] is None and first[0] is first[3]
    again = ask(vision, [BLUE, RED])
    assert looks == [2]
    assert torch.equal(numbers(again[1])[0], numbers(first[0])[0])


def test_pictures_of_other_shapes_are_looked_at_apart(looks: list[int]):
    vision = Vision(trained_editor(shared("qwen2.5-vl")).encoder, 2**24)
    wide = Query("What is it?", picture("red", (120, 30)), "red")
    found = ask(vision, [RED, wide])
    assert all(features is not None for features in found)
    assert sum(looks) >= 2


def test_nothing_looks_at_a_picture_whose_states_are_known(llava: TinyModel, looks: list[int]):
    encoder = trained_editor(llava).encoder
    seen = ask(Vision(encoder, 2**24), [RED])[0]
    assert seen is not None
    looks.clear()
    vision = Vision(encoder, 2**24)
    known = (torch.zeros(1), form_of(seen))
    found = ask(vision, [RED, RED], [known, known])
    assert not looks
    for got, real in zip(numbers(found[0]), numbers(seen), strict=True):
        assert got.shape == real.shape and not bool(got.any())
    # Another question about the picture, whose states are not known, needs it all the same.
    found = ask(vision, [RED, RED], [known, None])
    assert looks == [1] and bool(numbers(found[0])[0].any())


def test_what_the_budget_does_not_hold_is_looked_at_again(llava: TinyModel, looks: list[int]):
    vision = Vision(trained_editor(llava).encoder, 0)
    for _ in range(2):
        assert bool(numbers(ask(vision, [RED])[0])[0].any())
    assert looks == [1, 1] and len(vision.cache) == 0
