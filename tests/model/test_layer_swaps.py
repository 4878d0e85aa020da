"""Parts of a model stand in for themselves only inside a block, and only for its thread."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_editors import request_of, trained_editor
from tiny_models import TinyModel
from torch import Tensor, nn

from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.layer_swaps import replaced, trimmed


class Adding(nn.Module):
    """Adds one."""

    def forward(self, value: int) -> int:
        return value + 1


def plus(number: int) -> Callable[[Any], Any]:
    return lambda real: lambda value: real(value) + number


def test_blocks_nest_and_leave_the_module_as_it_was():
    module = Adding()
    with replaced(module, plus(10)):
        with replaced(module, plus(100)):
            assert module(0) == 111
        assert module(0) == 11
        with pytest.raises(KeyError), replaced(module, plus(1000)):
            raise KeyError
        assert module(0) == 11
    assert module(0) == 1 and "forward" not in vars(module)


def test_a_forward_that_somebody_has_put_there_comes_back():
    module = Adding()
    theirs = lambda value: value + 5  # noqa: E731
    module.forward = theirs
    with replaced(module, plus(10)):
        assert module(0) == 15
    assert vars(module)["forward"] is theirs


def test_a_block_that_cannot_begin_leaves_nothing():
    module = Adding()

    def fail(_real: Any) -> Any:
        raise KeyError

    with pytest.raises(KeyError), replaced(module, fail):
        pytest.fail("the block must not run")
    assert module(0) == 1 and "forward" not in vars(module)


@pytest.mark.parametrize("first_to_end", ["first", "second"])
def test_overlapping_blocks_of_two_threads_do_not_meet(first_to_end: str):
    module = Adding()
    found: dict[str, list[int]] = {"first": [], "second": []}
    begun, ended = threading.Barrier(2), threading.Barrier(2)

    def work(name: str, number: int) -> None:
        with replaced(module, plus(number)):
            begun.wait(10)
            found[name].append(module(0))
            if name != first_to_end:
                ended.wait(10)
                found[name].append(module(0))
        if name == first_to_end:
            found[name].append(module(0))
            ended.wait(10)

    threads = [
        threading.Thread(target=work, args=("first", 10)),
        threading.Thread(target=work, args=("second", 100)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    other = {"first": "second", "second": "first"}[first_to_end]
    inside = {"first": 11, "second": 101}
    assert found[first_to_end] == [inside[first_to_end], 1]
    assert found[other] == [inside[other]] * 2
    assert module(0) == 1 and "forward" not in vars(module)


@pytest.mark.parametrize("signal", ["target", "prompt+target", "all"])
def test_an_edit_reads_the_states_of_a_whole_forward(every: TinyModel, signal: str):
    editor = trained_editor(every, signal=signal)
    batch = editor.encoder.encode([request_of(), request_of("Which shape is it?", "a big circle")])
    with torch.no_grad(), record(editor.backbone.layers, editor.config.layers) as states:
        every.model(**batch.inputs, use_cache=False)
    expected = editor.signals_of(states, batch)
    for one, two in zip(editor.read_batch(batch), expected, strict=True):
        for layer, found in one.states.items():
            torch.testing.assert_close(found, two.states[layer], rtol=1e-4, atol=1e-4)
        for name in ("gate_state", "last_state", "vision_state"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), rtol=1e-4, atol=1e-4)


def test_a_trimmed_layer_runs_only_where_it_is_read_and_is_right_there(llava: TinyModel):
    editor = trained_editor(llava)
    batch = editor.encoder.encode([request_of()])
    layers: Any = editor.backbone.layers
    with torch.no_grad(), record(layers, [2], stop=True) as whole:
        llava.model(**batch.inputs, use_cache=False)
    index = batch.target.flatten().nonzero()[:, 0]
    seen: list[int] = []

    def read(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].shape[-2])

    hook = layers[2].mlp.gate_proj.register_forward_pre_hook(read)
    try:
        with (
            torch.no_grad(),
            record(layers, [2], stop=True) as states,
            replaced(layers[2], trimmed(layers[2], index)),
        ):
            llava.model(**batch.inputs, use_cache=False)
    finally:
        hook.remove()
    assert seen == [len(index)] == [int(batch.target.sum())]
    torch.testing.assert_close(states[2][batch.target], whole[2][batch.target])
