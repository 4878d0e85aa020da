"""The adapter agrees with an independent computation and acts where it is told to."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_editors import tiny_config

from easyedit_dualedit.method.adapter import (
    CrossAttentionAdapter,
    DualAdapters,
    ProjectedEdit,
    add_at,
)

HIDDEN, WIDTH = 12, 8
Array = NDArray[np.float64]


def random_adapter(heads: int = 2) -> CrossAttentionAdapter:
    adapter = CrossAttentionAdapter(HIDDEN, WIDTH, heads)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    return adapter


def expected_delta(
    adapter: CrossAttentionAdapter, hidden: torch.Tensor, edit: torch.Tensor, mask: torch.Tensor
) -> Array:
    """Compute W_o softmax(Q K^T / sqrt(k)) V one query, head and row at a time."""
    weights = {name: value.detach().double().numpy() for name, value in adapter.named_parameters()}

    def normed(states: Array, name: str) -> Array:
        centred = states - states.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(states: Array, name: str) -> Array:
        return states @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    size = WIDTH // adapter.heads
    deltas = np.zeros(hidden.shape)
    for row in range(len(hidden)):
        source = normed(edit[row].double().numpy()[mask[row].numpy()], "edit_norm")
        queries = linear(normed(hidden[row].double().numpy(), "query_norm"), "query")
        keys, values = linear(source, "key"), linear(source, "value")
        for place, query in enumerate(queries):
            joined = []
            for head in range(adapter.heads):
                part = slice(head * size, (head + 1) * size)
                scores = keys[:, part] @ query[part] / math.sqrt(size)
                shares = np.exp(scores - scores.max())
                joined.append((shares / shares.sum()) @ values[:, part])
            deltas[row, place] = linear(np.concatenate(joined), "output")
    return deltas


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_change_is_cross_attention_to_the_edit(heads: int):
    adapter = random_adapter(heads)
    hidden, edit = torch.randn(3, 5, HIDDEN) * 2 + 1, torch.randn(3, 4, HIDDEN) * 3 - 1
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]]).bool()
    with torch.no_grad():
        delta = adapter(hidden, adapter.project(edit, mask))
    np.testing.assert_allclose(
        delta.numpy(), expected_delta(adapter, hidden, edit, mask), atol=1e-5, rtol=1e-5
    )


def test_masked_positions_of_an_edit_have_no_say():
    adapter = random_adapter()
    hidden, edit = torch.randn(2, 3, HIDDEN), torch.randn(2, 4, HIDDEN)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    other = torch.where(mask[..., None], edit, 1e3)
    with torch.no_grad():
        first = adapter(hidden, adapter.project(edit, mask))
        assert torch.equal(first, adapter(hidden, adapter.project(other, mask)))
        unmasked = adapter(hidden, adapter.project(edit, torch.ones_like(mask)))
    assert not torch.allclose(first, unmasked, atol=1e-3)


def test_an_untrained_adapter_changes_nothing_and_can_learn():
    adapter = CrossAttentionAdapter(HIDDEN, WIDTH, 2)
    edit = adapter.project(torch.randn(2, 4, HIDDEN), torch.ones(2, 4, dtype=torch.bool))
    delta = adapter(torch.randn(2, 3, HIDDEN), edit)
    assert torch.equal(delta, torch.zeros_like(delta))
    (delta - 1).pow(2).sum().backward()
    assert adapter.output.weight.grad is not None
    assert float(adapter.output.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_states_of_any_dtype_are_taken_and_given_back(dtype: torch.dtype):
    adapter = random_adapter()
    hidden, edit = torch.randn(1, 3, HIDDEN), torch.randn(1, 2, HIDDEN)
    mask = torch.ones(1, 2, dtype=torch.bool)
    with torch.no_grad():
        delta = adapter(hidden.to(dtype), adapter.project(edit.to(dtype), mask))
        expected = adapter(hidden, adapter.project(edit, mask))
    assert delta.dtype == dtype
    torch.testing.assert_close(delta.float(), expected, atol=0.2, rtol=0.05)


def test_edits_are_selected_and_repeated_by_index():
    adapter = random_adapter()
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    with torch.no_grad():
        edit = adapter.project(torch.randn(3, 2, HIDDEN), mask)
    chosen = edit.select(torch.tensor([2, 0, 2]))
    for whole, part in (
        (edit.keys, chosen.keys),
        (edit.values, chosen.values),
        (mask, chosen.mask),
    ):
        assert torch.equal(part, torch.stack([whole[2], whole[0], whole[2]]))


def case() -> tuple[CrossAttentionAdapter, torch.Tensor, torch.Tensor, ProjectedEdit]:
    adapter = random_adapter()
    hidden = torch.randn(4, 6, HIDDEN)
    positions = torch.zeros(4, 6, dtype=torch.bool)
    positions[0, [0, 5]] = positions[1, 2:5] = positions[3, 1] = True
    with torch.no_grad():
        edit = adapter.project(torch.randn(3, 2, HIDDEN), torch.ones(3, 2, dtype=torch.bool))
    return adapter, hidden, positions, edit


def test_only_the_positions_of_the_rows_change_by_the_change_of_their_own_edit():
    adapter, hidden, positions, edit = case()
    rows = [3, 0, 2]  # row 2 has no positions, row 1 is not among them
    kept = hidden.clone()
    with torch.no_grad():
        changed = add_at(hidden, positions, adapter, edit, rows)
        everywhere = adapter(hidden[rows], edit)
    assert torch.equal(hidden, kept), "the input must not be modified"
    allowed = positions.clone()
    allowed[1] = False
    assert torch.equal((changed != hidden).any(-1), allowed)
    for place, row in enumerate(rows):
        expected = hidden[row] + everywhere[place]
        torch.testing.assert_close(
            changed[row, allowed[row]], expected[allowed[row]], atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("empty", ["rows", "positions"])
def test_nothing_to_change_gives_the_very_tensor_back(empty: str):
    adapter, hidden, positions, edit = case()
    rows = [3, 0, 2]
    if empty == "rows":
        rows, edit = [], edit.select(torch.tensor([], dtype=torch.long))
    else:
        positions = torch.zeros_like(positions)
    assert add_at(hidden, positions, adapter, edit, rows) is hidden


def test_states_that_are_not_finite_stay_where_they_are():
    adapter, hidden, positions, edit = case()
    hidden[0, 1], hidden[3, 5] = float("nan"), float("inf")  # not among the positions
    with torch.no_grad():
        changed = add_at(hidden, positions, adapter, edit, [0, 1, 3])
    assert torch.equal(changed.isfinite(), hidden.isfinite())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_unchanged_states_keep_their_bits_in_half_precision(dtype: torch.dtype):
    adapter, hidden, positions, edit = case()
    hidden = hidden.to(dtype)
    with torch.no_grad():
        changed = add_at(hidden, positions, adapter, edit, [0, 1, 3])
    assert changed.dtype == dtype
    assert torch.equal(changed[~positions], hidden[~positions])
    assert bool((changed != hidden).any(-1)[positions].all())


def test_gradients_reach_the_adapter_through_the_changed_positions():
    adapter, hidden, positions, _ = case()
    edit = adapter.project(torch.randn(3, 2, HIDDEN), torch.ones(3, 2, dtype=torch.bool))
    changed = add_at(hidden, positions, adapter, edit, [0, 1, 3])
    changed.pow(2).sum().backward()
    for name, parameter in adapter.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        if name != "key.bias":  # a shift of all scores: softmax does not see it
            assert float(parameter.grad.abs().sum()) > 0, name


def test_an_edit_projected_under_autocast_is_used_without_it():
    adapter = random_adapter()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            edit = adapter.project(torch.randn(1, 2, HIDDEN), torch.ones(1, 2, dtype=torch.bool))
        adapter(torch.randn(1, 3, HIDDEN), edit)


def no_words(words: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*words.shape, HIDDEN)


@pytest.mark.parametrize("modalities", [("text", "vision"), ("vision", "text"), ("vision",)])
def test_there_is_one_adapter_for_each_modality_in_use(modalities: tuple[str, ...]):
    config = tiny_config(modalities=modalities, text_layer=3, vision_layer=1)
    adapters = DualAdapters(HIDDEN, config, no_words)
    assert adapters.modalities == tuple(sorted(modalities)), "text comes first"
    assert adapters.layer_of == {"text": 3, "vision": 1}
    for modality in adapters.modalities:
        assert adapters[modality].heads == config.heads
        assert adapters[modality].query.weight.shape == (config.width, HIDDEN)
    if "text" not in modalities:
        with pytest.raises(KeyError, match="text"):
            adapters["text"]


def test_what_is_no_adapter_is_refused():
    adapters = DualAdapters(HIDDEN, tiny_config(), no_words)
    adapters.by_modality["text"] = torch.nn.Identity()
    with pytest.raises(TypeError, match="text holds Identity, not an adapter"):
        adapters["text"]


def words_adapter(width: int = 16, heads: int = 2) -> CrossAttentionAdapter:
    torch.manual_seed(4)
    adapter = CrossAttentionAdapter(HIDDEN, width, heads, word_path=True)
    with torch.no_grad():
        adapter.words.strength.fill_(0.05)
    return adapter


def edit_of(count: int, *, real: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a mask and words: one direction for each place, and nothing in padding."""
    mask = (torch.arange(count) < (count if real is None else real))[None]
    return mask, torch.eye(count, HIDDEN)[None] * mask[..., None]


def test_a_new_word_path_changes_nothing():
    adapter = CrossAttentionAdapter(HIDDEN, 16, 2, word_path=True)
    mask, words = edit_of(3)
    with torch.no_grad():
        edit = adapter.project(torch.randn(1, 3, HIDDEN), mask, words)
        assert not adapter(torch.randn(1, 2, HIDDEN), edit).any()


def test_a_word_is_written_in_its_own_direction_as_strong_as_the_state():
    adapter = words_adapter()
    with torch.no_grad():
        adapter.output.weight.zero_()
        adapter.words.head_weights.zero_()
        mask, words = edit_of(1)
        edit = adapter.project(torch.randn(1, 1, HIDDEN), mask, words)
        hidden = torch.randn(1, 2, HIDDEN)
        delta = adapter(hidden, edit)
        assert (delta[..., 1:] == 0).all() and (delta[..., 0] > 0).all()
        twice = adapter(hidden * 2, edit)
    torch.testing.assert_close(twice, delta * 2)


def test_the_nth_answer_token_finds_the_nth_word_before_any_training():
    adapter = words_adapter()
    mask, words = edit_of(4, real=3)
    with torch.no_grad():
        adapter.key.weight.zero_()
        adapter.query.weight.zero_()
        edit = adapter.project(torch.zeros(1, 4, HIDDEN), mask, words)
        hidden = torch.ones(1, 3, HIDDEN)
        delta = adapter(hidden, edit, torch.tensor([[0, 1, 2]]))
    assert delta[0, :, :4].argmax(-1).tolist() == [0, 1, 2]
    assert (delta[0, :, 3] == 0).all(), "padding says nothing"


def test_answers_longer_than_there_are_places_count_as_the_last():
    adapter = words_adapter()
    mask, words = edit_of(2)
    with torch.no_grad():
        edit = adapter.project(torch.randn(1, 2, HIDDEN), mask, words)
        hidden = torch.randn(1, 1, HIDDEN).expand(1, 2, HIDDEN)
        late = adapter(hidden, edit, torch.tensor([[63, 5000]]))
    torch.testing.assert_close(late[:, 0], late[:, 1])


def test_without_a_word_path_words_and_places_do_not_matter():
    adapter = random_adapter()
    mask, words = edit_of(2)
    states, hidden = torch.randn(1, 2, HIDDEN), torch.randn(1, 3, HIDDEN)
    with torch.no_grad():
        plain = adapter(hidden, adapter.project(states, mask))
        given = adapter(hidden, adapter.project(states, mask, words), torch.ones(1, 3).long())
    assert torch.equal(plain, given)


def test_attention_to_words_and_silence_is_that_of_each_row_and_head_by_itself():
    adapter = words_adapter(heads=4)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(std=0.5)
        mask = torch.arange(4) < torch.tensor([4, 2, 3])[:, None]
        words = torch.randn(3, 4, HIDDEN) * mask[..., None]
        edit = adapter.project(torch.randn(3, 4, HIDDEN), mask, words)
        hidden, answered = torch.randn(3, 5, HIDDEN), torch.arange(15).view(3, 5)
        found = adapter(hidden, edit, answered)
        path, k = adapter.words, 4
        shares = path.head_weights.softmax(0)
        for row, count in enumerate((4, 2, 3)):
            asked = adapter.query(adapter.query_norm(hidden[row])) + path.at(answered[row])
            pointing, heads = torch.zeros(5, count), []
            for head, queries in enumerate(asked.split(k, dim=1)):
                keys = torch.cat([edit.keys[row, head, :count], path.silent_key[head][None]])
                attention = (queries @ keys.T / k**0.5).softmax(-1)[:, :-1]
                pointing += shares[head] * attention
                heads.append(attention @ edit.values[row, head, :count])
            written = path.strength * 100 * hidden[row].norm(dim=-1, keepdim=True) * path.gain
            said = adapter.output(torch.cat(heads, 1)) + written * (pointing @ words[row, :count])
            torch.testing.assert_close(found[row], said, rtol=1e-4, atol=1e-3)
