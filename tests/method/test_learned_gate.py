"""Keys of the learned gate: what they read, and how strict the gate is among many edits."""

import math

import pytest
import torch
from tiny_editors import trained_editor
from tiny_models import TinyModel
from torch import nn

from easyedit_dualedit.method.config import GateConfig
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.gate import Gate
from easyedit_dualedit.method.gate_keys import (
    EDIT_COUNTS,
    GATE_FORMS,
    KEY_WIDTH,
    GateForm,
    GateProjection,
    TextKeys,
    vision_mean,
)
from easyedit_dualedit.model.backbone import TurnMarker
from easyedit_dualedit.model.inputs import Query, TokenLayout
from easyedit_dualedit.model.letters import LETTERS_WIDTH

HIDDEN = 16


def projection_of(form: GateForm = "two-layer") -> GateProjection:
    torch.manual_seed(0)
    return GateProjection(HIDDEN, form)


@pytest.mark.parametrize("form", GATE_FORMS)
def test_keys_are_unit_vectors_of_both_states(form: GateForm):
    projection = projection_of(form)
    states, vision = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    keys = projection(states, vision)
    assert keys.shape == (3, KEY_WIDTH * projection.parts)
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(keys, projection(states, vision.flip(0)))
    assert not torch.allclose(keys, projection(states.flip(0), vision))


@pytest.mark.parametrize("form", GATE_FORMS)
def test_a_key_is_most_similar_to_itself(form: GateForm):
    projection = projection_of(form)
    keys = projection(torch.randn(5, HIDDEN), torch.randn(5, HIDDEN))
    similarity = projection.similarity(keys, keys)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(5))
    assert bool((similarity <= 1 + 1e-6).all())
    torch.testing.assert_close(similarity, similarity.T)


def test_a_pair_is_as_similar_as_the_less_similar_half():
    projection = projection_of("linear-pair")
    unit, other = nn.functional.normalize(torch.randn(2, KEY_WIDTH), dim=-1)
    halfway = nn.functional.normalize(unit + other, dim=-1)
    key = torch.cat([unit, unit])[None] / math.sqrt(2)
    halves = [(unit, unit), (unit, -unit), (-unit, unit), (unit, halfway), (halfway, halfway)]
    edits = torch.stack([torch.cat(each) for each in halves]) / math.sqrt(2)
    (found,) = projection.similarity(key, edits).tolist()
    cosine = float(unit @ halfway)
    # Above the minimum by log(2) / 20 where the halves differ much, and not where they are alike.
    expected = [1.0, -1.0 + math.log(2) / 20, -1.0 + math.log(2) / 20, None, cosine]
    for value, wanted in zip(found, expected, strict=True):
        if wanted is not None:
            assert value == pytest.approx(wanted, abs=1e-4)
    assert cosine < found[3] < cosine + math.log(2) / 20


def test_no_picture_is_a_picture_of_zeros():
    projection = projection_of()
    states = torch.randn(3, HIDDEN)
    assert torch.equal(projection(states), projection(states, torch.zeros(3, HIDDEN)))


def test_the_mean_leaves_out_all_but_image_tokens_even_if_they_are_no_numbers():
    hidden = torch.randn(2, 5, HIDDEN)
    mask = torch.tensor([[False, True, True, False, False], [False] * 5])
    hidden[0, 0] = math.nan
    found = vision_mean(hidden, mask)
    torch.testing.assert_close(found[0], hidden[0, 1:3].mean(0))
    assert bool((found[1] == 0).all())
    torch.testing.assert_close(vision_mean(hidden[:1], mask[:1])[0], found[0])
    assert bool((vision_mean(hidden[1:], mask[1:]) == 0).all())


def test_the_threshold_is_linear_in_the_logarithm_of_the_count():
    projection = projection_of()
    assert math.isnan(projection.threshold(1)) and not projection.is_trained
    projection.thresholds.copy_(torch.linspace(0.5, 0.9, len(EDIT_COUNTS)))
    for place, count in enumerate(EDIT_COUNTS):
        assert projection.threshold(count) == pytest.approx(float(projection.thresholds[place]))
    between = projection.threshold(round(math.sqrt(30)))
    assert projection.threshold(3) < between < projection.threshold(10)
    low, high = (projection.threshold(count) for count in (30, 100))
    share = math.log(50 / 30) / math.log(100 / 30)
    assert projection.threshold(50) == pytest.approx(low + share * (high - low))
    assert projection.threshold(10**7) == pytest.approx(0.9)
    assert projection.threshold(0) == pytest.approx(0.5)


def gate_of(first: float, last: float, form: GateForm = "two-layer") -> Gate:
    gate = Gate(HIDDEN, GateConfig("learned"))
    gate.projection = projection_of(form)
    gate.projection.thresholds.copy_(torch.linspace(first, last, len(EDIT_COUNTS)))
    return gate


def test_the_gate_is_stricter_among_more_edits_but_not_for_an_assigned_one():
    gate = gate_of(0.0, 1.0)
    state, vision = torch.randn(1, HIDDEN), torch.randn(1, HIDDEN)
    key = gate.key(state, vision)
    torch.manual_seed(1)
    near = nn.functional.normalize(key + 0.05 * torch.randn(1, KEY_WIDTH), dim=-1)
    similarity = float((key @ near.T).detach())
    assert 0.5 < similarity < 0.95
    others = -key.repeat(20_000, 1)
    assert bool(gate.route(state, near, vision=vision).is_open)
    many = torch.cat([near, others])
    assert not bool(gate.route(state, many, vision=vision).is_open)
    assigned = gate.route(state, many, torch.tensor([0]), vision)
    assert assigned.edit_index.tolist() == [0]


@pytest.mark.parametrize("form", GATE_FORMS)
def test_routing_by_pictures_tells_two_scenes_apart(form: GateForm):
    gate = gate_of(0.999, 0.999, form)
    states = torch.randn(1, HIDDEN).repeat(2, 1)
    vision = torch.randn(2, HIDDEN)
    edits = gate.key(states, vision)
    assert gate.route(states, edits, vision=vision).edit_index.tolist() == [0, 1]
    assert not bool(gate.route(states, edits).is_open.any())


@pytest.mark.parametrize("form", GATE_FORMS)
def test_one_query_is_decided_as_in_a_batch(form: GateForm):
    gate = gate_of(0.5, 0.8, form)
    states, vision = torch.randn(50, HIDDEN), torch.randn(50, HIDDEN)
    edits = gate.key(states[:30], vision[:30])
    queries = states + 0.4 * torch.randn_like(states)
    together = gate.route(queries, edits, vision=vision)
    assert 0 < int(together.is_open.sum()) < 50
    for row in range(50):
        alone = gate.route(queries[row : row + 1], edits, vision=vision[row : row + 1])
        assert alone.edit_index[0] == together.edit_index[row]
        torch.testing.assert_close(alone.similarity[0], together.similarity[row])


def test_a_projection_of_an_earlier_version_is_left_out(caplog: pytest.LogCaptureFixture):
    gate = Gate(HIDDEN, GateConfig("learned"))
    earlier = {name: value for name, value in gate.state_dict().items() if "projection" not in name}
    earlier |= {
        "projection.threshold": torch.tensor(0.7),
        "projection.layers.1.weight": torch.zeros(64, HIDDEN),
    }
    earlier["thresholds"] = torch.tensor([0.9, 0.8, 0.7])
    gate.load_state_dict(earlier)
    assert gate.kind == "cosine" and gate.threshold == pytest.approx(0.9)
    assert "no trained learned gate" in caplog.text


@pytest.mark.parametrize("form", GATE_FORMS)
def test_a_projection_without_its_weights_is_refused(form: GateForm):
    gate = Gate(HIDDEN, GateConfig("learned"))
    gate.projection = projection_of(form)
    tensors = gate.state_dict()
    for damaged in (None, torch.tensor(1.0)):
        broken = {name: each for name, each in tensors.items() if "layers" not in name}
        if damaged is not None:
            broken["projection.layers.0.weight"] = damaged
        with pytest.raises(RuntimeError, match=r"projection\.layers"):
            Gate(HIDDEN, GateConfig("learned")).load_state_dict(broken)


@pytest.mark.parametrize("before", GATE_FORMS)
@pytest.mark.parametrize("saved", GATE_FORMS)
def test_a_gate_takes_the_form_that_was_saved(saved: GateForm, before: GateForm):
    gate, loaded = (Gate(HIDDEN, GateConfig("learned")) for _ in range(2))
    gate.projection, loaded.projection = projection_of(saved), GateProjection(HIDDEN, before)
    gate.projection.thresholds.fill_(0.5)
    sharing = loaded.with_config(GateConfig("learned", threshold=0.9))
    loaded.load_state_dict(gate.state_dict())
    states, vision = torch.randn(3, HIDDEN), torch.randn(3, HIDDEN)
    assert loaded.projection.form == saved and loaded.threshold == 0.5
    assert torch.equal(loaded.key(states, vision), gate.key(states, vision))
    assert torch.equal(sharing.key(states, vision), gate.key(states, vision))


@pytest.mark.parametrize("before", GATE_FORMS)
@pytest.mark.parametrize("is_trained", [True, False], ids=["trained", "frozen"])
def test_a_form_is_taken_in_the_dtype_of_the_gate_and_frozen_where_it_was(
    before: GateForm, is_trained: bool
):
    saved, gate = (Gate(HIDDEN, GateConfig("learned")) for _ in range(2))
    saved.projection, gate.projection = projection_of("linear-pair"), GateProjection(HIDDEN, before)
    saved.projection.thresholds.fill_(0.9982)
    gate.to(torch.bfloat16).requires_grad_(is_trained)
    gate.load_state_dict(saved.state_dict())
    parameters = list(gate.parameters())
    assert {each.dtype for each in parameters} == {torch.bfloat16}
    assert {each.requires_grad for each in parameters} == {is_trained}
    assert gate.threshold == saved.threshold
    states = torch.randn(3, HIDDEN)
    torch.testing.assert_close(gate.key(states), saved.key(states), atol=0.02, rtol=0)


def text_keys(threshold: float) -> TextKeys:
    torch.manual_seed(2)
    keys = TextKeys(HIDDEN)
    keys.mean.normal_()
    keys.axes.normal_()
    keys.thresholds.fill_(threshold)
    return keys


def test_half_of_a_key_is_how_a_prompt_is_spelled():
    keys = text_keys(0.8)
    keys.letters.fill_(0.5)
    means, letters = torch.randn(1, HIDDEN), torch.randn(3, LETTERS_WIDTH)
    letters[2] = 0.0
    first, other, unspelled = keys(torch.cat([means.expand(3, -1), letters], 1))
    assert float(first @ first) == pytest.approx(1.0, abs=1e-5)
    alike = nn.functional.cosine_similarity(letters[0], letters[1], dim=0)
    assert float(first @ other) == pytest.approx(0.5 + 0.5 * float(alike), abs=1e-5)
    assert float(unspelled @ unspelled) == pytest.approx(1.0, abs=1e-5)
    keys.letters.zero_()
    first, other, _ = keys(torch.cat([means.expand(3, -1), letters], 1))
    assert float(first @ other) == pytest.approx(1.0, abs=1e-5)


def test_text_keys_from_before_letters_still_load():
    saved, gate = (Gate(HIDDEN, GateConfig("learned")) for _ in range(2))
    saved.text = text_keys(0.8)
    tensors = saved.state_dict()
    del tensors["text.letters"]
    gate.load_state_dict(tensors)
    assert gate.text is not None and not gate.text.letters
    assert torch.equal(gate.text.axes, saved.text.axes)


def questions(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return states, no pictures, and prompts."""
    torch.manual_seed(3)
    # Last tokens are all but the same.
    states = torch.randn(1, HIDDEN) + 0.01 * torch.randn(count, HIDDEN)
    said = torch.randn(count, HIDDEN + LETTERS_WIDTH)
    return states, torch.zeros(count, HIDDEN), said


@pytest.mark.parametrize("form", GATE_FORMS)
def test_questions_without_a_picture_are_told_apart_by_their_prompts(form: GateForm):
    gate = gate_of(0.7, 0.9, form)
    states, vision, text = questions(5)
    first = gate.key(states, vision, text)[:1]
    assert bool(gate.route(states, first, None, vision, text).is_open.all())
    gate.text = text_keys(0.8)
    edits = gate.key(states, vision, text)
    found = gate.route(states, edits, None, vision, text)
    assert found.edit_index.tolist() == [0, 1, 2, 3, 4]
    alone = gate.route(states, edits[:1], None, vision, text)
    assert alone.is_open.tolist() == [True, False, False, False, False]


def test_edits_that_were_kept_before_the_keys_are_compared_as_they_were():
    gate = gate_of(0.7, 0.9)
    states, vision, text = questions(3)
    kept = gate.key(states, vision, text)
    before = gate.route(states, kept, None, vision, text)
    gate.text = text_keys(0.8)
    after = gate.route(states, kept, None, vision, text)
    assert torch.equal(before.similarity, after.similarity)


@pytest.mark.parametrize("form", GATE_FORMS)
def test_text_keys_change_nothing_where_the_query_or_the_edit_has_a_picture(form: GateForm):
    gate = gate_of(0.3, 0.6, form)
    states, _, text = questions(6)
    pictures = torch.randn(6, HIDDEN)
    shown = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])[:, None]
    vision, text = pictures * shown, text * (1 - shown)
    with_picture = shown[:, 0] == 1
    before = gate.route(states, gate.key(states, vision, text), None, vision, text)
    shown_edits = gate.key(states, vision, text)[with_picture]
    on_pictures = gate.route(states, shown_edits, None, vision, text)
    gate.text = text_keys(0.5)
    edits = gate.key(states, vision, text)
    after = gate.route(states, edits, None, vision, text)
    for name in ("similarity", "edit_index"):
        assert torch.equal(getattr(before, name)[with_picture], getattr(after, name)[with_picture])
        found = gate.route(states, edits[with_picture], None, vision, text)
        assert torch.equal(getattr(on_pictures, name), getattr(found, name))
    assert not torch.equal(before.similarity, after.similarity)


def test_the_threshold_of_text_keys_is_that_of_the_gate():
    """Similarities of questions without a picture are told in the unit of the gate's threshold."""
    gate = gate_of(0.6, 0.9)
    gate.text = text_keys(0.4)
    gate.text.thresholds.copy_(torch.linspace(0.4, 0.7, len(EDIT_COUNTS)))
    states, vision, text = questions(40)
    keys = gate.key(states, vision, text)
    cosines = keys[:, KEY_WIDTH:] @ keys[:, KEY_WIDTH:].T
    for count in (1, 5, 300, 10_000):
        similarity = gate.similarity(keys, keys, among=count)
        opens = similarity >= gate.threshold_among(count)
        assert torch.equal(opens, cosines >= gate.text.threshold(count))
        assert 40 <= int(opens.sum()) < 1600
        torch.testing.assert_close(similarity.diagonal(), torch.ones(40))


def test_text_keys_are_loaded_where_there_are_any_and_dropped_where_not():
    saved, loaded = (gate_of(0.5, 0.5) for _ in range(2))
    before = {name: value.clone() for name, value in saved.state_dict().items()}
    saved.text = text_keys(0.6)
    loaded.to(torch.bfloat16)
    sharing = loaded.with_config(GateConfig("learned", threshold=0.9))
    loaded.load_state_dict(saved.state_dict())
    assert sharing.text is loaded.text
    assert loaded.text is not None and loaded.text.axes.dtype == torch.bfloat16
    assert loaded.text.threshold(1) == saved.text.threshold(1)
    states, vision, text = questions(3)
    expected = saved.key(states, vision, text)
    torch.testing.assert_close(loaded.key(states, vision, text), expected, atol=0.05, rtol=0)
    loaded.load_state_dict(before)
    assert loaded.text is None and loaded.key(states).shape == (3, KEY_WIDTH)


def test_the_mean_of_a_prompt_leaves_out_padding_and_rows_with_a_picture():
    ids = torch.arange(12).reshape(2, 6)
    real = torch.tensor([[False, False, True, True, True, True], [True] * 6])
    seen = torch.tensor([[False] * 6, [False, True, True, False, False, False]])
    layout = TokenLayout.of(ids, real, torch.tensor([4, 4]), seen, None)
    hidden = torch.randn(2, 6, HIDDEN)
    hidden[0, 2] *= 100  # one token's state is far larger than the others'
    hidden[:, 5] = math.nan  # the target
    hidden[0, :2] = math.nan
    found = TextKeys(HIDDEN).said(hidden, layout)
    expected = nn.functional.layer_norm(hidden[0, 2:5], (HIDDEN,)).mean(0)
    torch.testing.assert_close(found[0, :HIDDEN], expected)
    assert bool((found[1] == 0).all())
    alone = layout.select(torch.tensor([1]))
    assert bool((TextKeys(HIDDEN).said(hidden[1:], alone) == 0).all())
    weighing = TextKeys(HIDDEN, vocabulary=12)
    torch.testing.assert_close(weighing.said(hidden, layout), found)  # all weigh alike at first
    weighing.weights.copy_(torch.arange(12) == 3)
    expected = nn.functional.layer_norm(hidden[0, 3], (HIDDEN,))
    torch.testing.assert_close(weighing.said(hidden, layout)[0, :HIDDEN], expected)
    weighing.weights.zero_()
    assert not weighing(weighing.said(hidden, layout)).any(), "a prompt that says nothing"


def test_what_stands_before_the_last_turn_has_no_part_in_the_mean():
    """Token 7 begins a question, and token 2 is the prompt's end."""
    ids = torch.tensor([[7, 8, 5, 3, 2, 7, 8, 4, 2]])
    real, seen = torch.ones_like(ids).bool(), torch.zeros_like(ids).bool()
    layout = TokenLayout.of(ids, real, torch.tensor([8]), seen, None)
    hidden = torch.randn(1, 9, HIDDEN)
    found = TextKeys(HIDDEN).said(hidden, layout, TurnMarker((7, 8), 1))
    alone = layout.select(torch.tensor([0]))
    expected = nn.functional.layer_norm(hidden[0, 7:], (HIDDEN,)).mean(0)
    torch.testing.assert_close(found[0, :HIDDEN], expected)
    assert not torch.allclose(TextKeys(HIDDEN).said(hidden, alone)[0, :HIDDEN], expected)


def test_a_gate_whose_own_threshold_is_one_does_not_open_for_every_text():
    gate = gate_of(1.0, 1.0)
    gate.text = text_keys(0.8)
    states, vision, text = questions(5)
    edits = gate.key(states, vision, text)
    assert not gate.route(states[:1], edits[1:], None, vision[:1], text[:1]).is_open.any()


def test_edits_from_before_and_after_the_text_keys_are_kept_together(llava: TinyModel):
    editor = trained_editor(llava)
    editor.gate.projection.thresholds.fill_(0.9)
    memory = EditMemory(editor)
    memory.add(Query("Who wrote Hamlet?", None, "a kite"))
    editor.gate.text = TextKeys(len(editor.gate.mean))
    editor.gate.text.axes.normal_()
    editor.gate.text.thresholds.fill_(0.9)
    memory.add(Query("Where is the capital of France?", None, "a word"))
    inputs = editor.encoder.encode([Query("Where is the capital of France?")]).inputs
    assert memory.model.route(**inputs).edit_index.tolist() == [1]
