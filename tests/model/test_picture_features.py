"""Features of pictures: computed once, kept, divided, put together again, and blank."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, shared, trained_editor
from tiny_models import TinyModel
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from easyedit_dualedit.model import picture_features as module
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.picture_features import (
    Features,
    Form,
    PictureFeatures,
    UnknownFeaturesError,
    blank,
    divided,
    form_of,
    merged,
    read_features,
    unread_layers,
)
from easyedit_dualedit.model.query_cache import TensorCache, size_of

STATES = torch.arange(24.0).view(6, 4)


@pytest.mark.parametrize("kind", [BaseModelOutputWithPooling, BaseModelOutput])
def test_parts_go_together_again(kind: type):
    """The second kind has no field of that name; transformers 5.5 sets it all the same."""
    parts = divided(Features(kind, {"pooler_output": STATES}), [2, 4])
    assert parts is not None and [len(p.values["pooler_output"]) for p in parts] == [2, 4]
    answer = merged(parts)
    assert type(answer) is kind
    assert torch.equal(answer.pooler_output, STATES)
    assert answer.last_hidden_state is None


def test_a_list_of_pictures_stays_a_list():
    values = {
        "pooler_output": [STATES[:2], STATES[2:]],
        "deepstack_features": [STATES, STATES + 1],
    }
    parts = divided(Features(BaseModelOutputWithPooling, values), [2, 4])
    assert parts is not None
    assert torch.equal(parts[1].values["deepstack_features"][1], STATES[2:] + 1)

    class Answer(dict[str, object]):
        pass

    whole = merged([Features(Answer, part.values) for part in parts])
    assert [len(each) for each in whole["pooler_output"]] == [2, 4]
    assert torch.equal(whole["deepstack_features"][1], STATES + 1)


def test_what_is_not_plainly_whose_is_not_divided():
    features = Features(BaseModelOutputWithPooling, {"pooler_output": STATES})
    assert divided(features, [2, 3]) is None


def test_blank_features_have_the_form_and_nothing_else():
    values = {"pooler_output": STATES, "deepstack_features": [STATES.half()]}
    features = Features(BaseModelOutputWithPooling, values)
    empty = blank(form_of(features), torch.device("cpu"))
    assert form_of(empty) == form_of(features)
    answer = merged([empty, empty])
    assert answer.pooler_output.shape == (12, 4) and not bool(answer.pooler_output.any())
    assert answer.last_hidden_state is None


def test_a_model_without_such_an_answer_is_refused():
    with pytest.raises(UnknownFeaturesError, match="Identity"):
        read_features(torch.nn.Identity(), {"input": torch.zeros(1)})


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
    pictures: PictureFeatures, queries: Sequence[Query], forms: Sequence[Form | None] | None = None
) -> list[Features | None]:
    keys = [query.shown_keys for query in queries]
    return pictures.of(queries, keys, forms or [None] * len(queries), {})


def numbers(features: Features | None) -> list[Tensor]:
    assert features is not None
    flat: list[Tensor] = []
    for value in features.values.values():
        flat += [value] if isinstance(value, Tensor) else torch.utils._pytree.tree_leaves(value)
    return flat


def test_features_are_those_of_the_picture_alone(every: TinyModel):
    encoder = trained_editor(every).encoder
    queries = [RED, BLUE, RED]
    found = ask(PictureFeatures(encoder, 2**24), queries)
    for query, one in zip(queries, found, strict=True):
        batch = encoder.encode([query], with_target=False)
        own = read_features(every.model, dict(batch.inputs))
        for got, expected in zip(numbers(one), numbers(own), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.equal(numbers(found[0])[0], numbers(found[1])[0])


def test_a_picture_is_looked_at_once_and_new_ones_together(llava: TinyModel, looks: list[int]):
    pictures = PictureFeatures(trained_editor(llava).encoder, 2**24)
    first = ask(pictures, [RED, BLIND, BLUE, RED])
    assert looks == [2]
    assert first[1] is None and first[0] is first[3]
    again = ask(pictures, [BLUE, RED])
    assert looks == [2]
    assert torch.equal(numbers(again[1])[0], numbers(first[0])[0])


def test_pictures_of_other_shapes_are_looked_at_apart(looks: list[int]):
    pictures = PictureFeatures(trained_editor(shared("qwen2.5-vl")).encoder, 2**24)
    wide = Query("What is it?", picture("red", (120, 30)), "red")
    found = ask(pictures, [RED, wide])
    assert all(features is not None for features in found)
    assert sum(looks) >= 2


def test_nothing_looks_at_a_picture_whose_states_are_known(llava: TinyModel, looks: list[int]):
    encoder = trained_editor(llava).encoder
    seen = ask(PictureFeatures(encoder, 2**24), [RED])[0]
    assert seen is not None
    looks.clear()
    pictures = PictureFeatures(encoder, 2**24)
    form = form_of(seen)
    found = ask(pictures, [RED, RED], [form, form])
    assert not looks
    for got, real in zip(numbers(found[0]), numbers(seen), strict=True):
        assert got.shape == real.shape and not bool(got.any())
    # Another question about the picture, whose states are not known, needs it all the same.
    found = ask(pictures, [RED, RED], [form, None])
    assert looks == [1] and bool(numbers(found[0])[0].any())


def test_what_the_budget_does_not_hold_is_looked_at_again(llava: TinyModel, looks: list[int]):
    pictures = PictureFeatures(trained_editor(llava).encoder, 0)
    for _ in range(2):
        assert bool(numbers(ask(pictures, [RED])[0])[0].any())
    assert looks == [1, 1] and len(pictures.cache) == 0


def test_the_least_recently_used_is_forgotten_first():
    cache = TensorCache(budget=800)
    for key in "ab":
        cache.put(key, torch.zeros(100))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(100))
    assert [cache.get(key) is not None for key in "abc"] == [True, False, True]
    assert (cache.size, len(cache)) == (800, 2)


def test_values_come_back_as_they_were():
    kept = {"pooled": torch.randn(3, 4, dtype=torch.bfloat16), "deep": [torch.arange(5), None]}
    cache = TensorCache(budget=1000)
    cache.put("a", (dict, kept))
    kind, found = cache.get("a")
    assert kind is dict and found["deep"][1] is None
    assert torch.equal(found["pooled"], kept["pooled"]) and found["pooled"].dtype == torch.bfloat16
    assert torch.equal(found["deep"][0], kept["deep"][0])
    assert cache.size == size_of(kept) == 3 * 4 * 2 + 5 * 8


def test_what_is_held_is_a_copy_that_keeps_nothing_larger_alive():
    whole = torch.randn(100, 4, requires_grad=True)
    cache = TensorCache(budget=1000)
    cache.put("a", whole[:2])
    before = whole[:2].detach().clone()
    with torch.no_grad():
        whole.zero_()
    found = cache.get("a")
    assert torch.equal(found, before) and not found.requires_grad
    assert found.untyped_storage().nbytes() == 2 * 4 * 4


def test_the_bytes_are_a_bound():
    cache = TensorCache(budget=1000)
    cache.put("a", torch.zeros(10))
    cache.put("large", torch.zeros(251))
    assert cache.get("large") is None and cache.get("a") is not None, "nothing makes room for it"
    for number in range(30):
        cache.put(number, torch.zeros(1 + 37 * number % 250))
        assert cache.size <= 1000
        assert cache.size == sum(size_of(cache.get(key)) for key in range(30)) + size_of(
            cache.get("a")
        )
    nothing = TensorCache(budget=0)
    nothing.put("a", torch.zeros(1))
    assert len(nothing) == 0


def test_a_value_in_use_outlives_its_place():
    cache = TensorCache(budget=400)
    first = torch.randn(100)
    cache.put("a", first)
    used = cache.get("a")
    cache.put("b", torch.zeros(100))
    assert cache.get("a") is None and torch.equal(used, first)


def test_a_key_that_is_held_stays_as_it_is():
    cache = TensorCache(budget=400)
    cache.put("a", torch.ones(2))
    cache.put("a", torch.zeros(9))
    assert torch.equal(cache.get("a"), torch.ones(2)) and cache.size == 8


def model_of(read: Any, stacks: int = 1, count: int = 4) -> Any:
    tower = nn.Module()
    for index in range(stacks):
        tower.add_module(f"layers{index}", nn.ModuleList(nn.Identity() for _ in range(count)))
    config = SimpleNamespace(
        vision_feature_layer=read, vision_config=SimpleNamespace(num_hidden_layers=4)
    )
    return SimpleNamespace(config=config, model=SimpleNamespace(vision_tower=tower))


@pytest.mark.parametrize(
    ("read", "left"),
    [(-1, 0), (-2, 1), (4, 0), (1, 3), (0, 4), ([-3, 1], 2), ([-2, -4], 1), (None, 0), ([], 0)],
)
def test_layers_behind_the_last_that_is_read(read: Any, left: int):
    model = model_of(read)
    layers = list(model.model.vision_tower.layers0)
    assert unread_layers(model) == layers[4 - left :]


def test_a_tower_that_is_not_plain_runs_whole():
    assert unread_layers(model_of(-2, stacks=2)) == []
    assert unread_layers(model_of(-2, count=3)) == []
    assert unread_layers(nn.Linear(1, 1)) == []


def test_features_are_those_of_the_whole_tower(monkeypatch: pytest.MonkeyPatch):
    editor = trained_editor(shared("llava"))
    model: Any = editor.backbone.model
    monkeypatch.setattr(model.config, "vision_feature_layer", -2)
    layers = unread_layers(model)
    assert layers
    inputs = dict(editor.encoder.encode([request_of()]).inputs)
    calls: list[int] = []
    real = type(layers[0]).forward
    monkeypatch.setattr(
        type(layers[0]), "forward", lambda *a, **k: (calls.append(id(a[0])), real(*a, **k))[1]
    )
    with torch.no_grad():
        whole = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        assert calls.pop() == id(layers[-1])
        calls.clear()
        found = read_features(model, inputs).values["pooler_output"]
    assert calls and id(layers[-1]) not in calls
    assert all(torch.equal(one, two) for one, two in zip(whole, found, strict=True))
