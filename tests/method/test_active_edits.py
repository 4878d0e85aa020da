"""The memory of edits holds what a forward needs of them, and nothing else decides it."""

import dataclasses

import pytest
import torch
from tiny_editors import tiny_config

from easyedit_dualedit.method.active_edits import ActiveEdits, EditSignal, stacked
from easyedit_dualedit.method.adapter import DualAdapters
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.gate import Gate

HIDDEN = 6
VOCABULARY = 5


def signal_of(seed: int, length: int) -> EditSignal:
    generator = torch.Generator().manual_seed(seed)

    def states(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, HIDDEN, generator=generator)

    words = torch.randint(0, VOCABULARY, (length,), generator=generator)
    return EditSignal({1: states(length), 2: states(length)}, *(states() for _ in range(4)), words)


def word_vectors(words: torch.Tensor) -> torch.Tensor:
    vectors = torch.eye(VOCABULARY, HIDDEN)[words.clamp(min=0)]
    return vectors * (words >= 0)[..., None]


def memory_of(
    signals: list[EditSignal], config: DualEditConfig
) -> tuple[ActiveEdits, DualAdapters, Gate]:
    torch.manual_seed(1)
    adapters, gate = DualAdapters(HIDDEN, config, word_vectors), Gate(HIDDEN, config.gate)
    with torch.no_grad():
        return ActiveEdits.of(signals, adapters, gate), adapters, gate


@pytest.mark.parametrize(
    ("lengths", "dtype"),
    [([3, 1, 2], torch.float32), ([2], torch.float16), ([2, 2], torch.bfloat16)],
)
def test_states_of_different_lengths_are_stacked(lengths: list[int], dtype: torch.dtype):
    states = [torch.randn(length, HIDDEN).to(dtype) for length in lengths]
    padded, mask = stacked(states)
    assert padded.dtype == dtype
    assert mask.shape == padded.shape[:2] == (len(lengths), max(lengths))
    assert mask.sum(1).tolist() == lengths
    for row, item in enumerate(states):
        assert torch.equal(padded[row, mask[row]], item)
    assert bool((padded[~mask] == 0).all())


def test_a_memory_without_edits_is_empty():
    memory, _, gate = memory_of([], tiny_config())
    assert len(memory) == 0 and memory.edits == () and memory.projected == {}
    assert memory.keys.shape == (0, HIDDEN)
    assert not gate.route(torch.randn(2, HIDDEN), memory.keys).is_open.any()


@pytest.mark.parametrize(
    ("kind", "name"),
    [("cosine", "gate_state"), ("open", "gate_state"), ("last-token", "last_state")],
)
def test_keys_come_from_the_token_that_the_gate_reads(kind: str, name: str):
    signals = [signal_of(0, 2), signal_of(1, 3)]
    memory, _, gate = memory_of(signals, tiny_config(gate=kind))
    expected = gate.key(torch.stack([getattr(signal, name) for signal in signals]))
    assert torch.equal(memory.keys, expected)
    assert len(memory) == 2 and memory.edits == tuple(signals)


@pytest.mark.parametrize("layers", [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize("modalities", [("text",), ("vision",), ("text", "vision")])
def test_each_adapter_projects_the_states_of_its_own_layer(
    layers: tuple[int, int], modalities: tuple[str, ...]
):
    config = tiny_config(text_layer=layers[0], vision_layer=layers[1], modalities=modalities)
    signals = [signal_of(0, 2), signal_of(1, 4)]
    memory, adapters, _ = memory_of(signals, config)
    assert set(memory.projected) == set(modalities)
    for modality in adapters.modalities:
        layer = adapters.layer_of[modality]
        for place, signal in enumerate(signals):
            states = signal.states[layer][None]
            with torch.no_grad():
                alone = adapters[modality].project(
                    states,
                    torch.ones(states.shape[:2], dtype=torch.bool),
                    word_vectors(signal.words[None]),
                )
            held = memory.projected[modality].select(torch.tensor([place]))
            length = int(held.mask.sum())
            assert length == states.shape[1]
            torch.testing.assert_close(held.keys[:, :, :length], alone.keys)
            torch.testing.assert_close(held.values[:, :, :length], alone.values)


def test_a_longer_edit_added_later_changes_no_answer_of_the_first():
    first, longer = signal_of(0, 2), signal_of(1, 5)
    config = tiny_config()
    alone, adapters, _ = memory_of([first], config)
    both, *_ = memory_of([first, longer], config)
    hidden = torch.randn(1, 3, HIDDEN)
    adapter = adapters["text"]
    with torch.no_grad():
        adapter.output.weight.normal_()
        adapter.words.strength.fill_(1.0)
        row = torch.tensor([0])
        torch.testing.assert_close(
            adapter(hidden, both.projected["text"].select(row)),
            adapter(hidden, alone.projected["text"].select(row)),
        )
    torch.testing.assert_close(both.keys[:1], alone.keys)


def test_memories_and_signals_cannot_be_changed_in_place():
    memory, *_ = memory_of([signal_of(0, 2)], tiny_config())
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.keys = torch.zeros(1)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory.edits[0].gate_state = torch.zeros(1)  # type: ignore[misc]
    with pytest.raises(AttributeError):
        memory.edits.append(signal_of(1, 2))  # type: ignore[attr-defined]
