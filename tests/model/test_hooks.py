"""Hooks read and change layers only inside their block, and leave nothing behind."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.model.hooks import (
    Hooks,
    attach,
    lasting_tensors,
    record,
    replaced,
    undisturbed,
)


class Layer(nn.Module):
    """Adds its number; may return a tuple, as decoder layers of older releases do."""

    def __init__(self, number: float, *, as_tuple: bool = False):
        super().__init__()
        self.number = number
        self.as_tuple = as_tuple
        self.calls = 0

    def forward(self, hidden: Tensor) -> Any:
        self.calls += 1
        return (hidden + self.number, "cache") if self.as_tuple else hidden + self.number


class Stack(nn.Module):
    """Three layers in a row: adds 1, 10 and 100."""

    def __init__(self, *, as_tuple: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(Layer(n, as_tuple=as_tuple) for n in (1.0, 10.0, 100.0))
        self.extras: list[Any] = []

    def forward(self, hidden: Tensor, *, scale: float = 1.0) -> Tensor:
        self.extras = []
        for layer in self.layers:
            output = layer(hidden)
            hidden = output[0] if isinstance(output, tuple) else output
            self.extras.append(output[1:] if isinstance(output, tuple) else ())
        return hidden * scale


def hooks_on(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(params=[False, True], ids=["tensor", "tuple"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    model = Stack(as_tuple=request.param)
    yield model
    assert hooks_on(model) == 0


ZERO = torch.zeros(1, 2, 3)


def test_edits_change_the_named_layers_inside_the_block_only(stack: Stack):
    with attach(stack.layers, {0: lambda h: h * 2, 2: lambda h: h - 5}):
        inside = stack(ZERO)
    assert torch.equal(inside, ZERO + (1 * 2 + 10 + 100 - 5))
    assert torch.equal(stack(ZERO), ZERO + 111)


def test_an_edit_that_returns_none_leaves_the_layer(stack: Stack):
    seen: list[Tensor] = []
    with attach(stack.layers, {1: seen.append}):
        assert torch.equal(stack(ZERO), ZERO + 111)
    assert len(seen) == 1 and torch.equal(seen[0], ZERO + 11)


def test_the_rest_of_a_tuple_stays():
    stack = Stack(as_tuple=True)
    with attach(stack.layers, {1: lambda h: h * 0}):
        assert torch.equal(stack(ZERO), ZERO + 100)
    assert stack.extras == [("cache",)] * 3


def test_registering_half_way_leaves_nothing(stack: Stack):
    with pytest.raises(IndexError), attach(stack.layers, {0: lambda h: h, 7: lambda h: h}):
        pytest.fail("the block must not run")
    assert hooks_on(stack) == 0
    with pytest.raises(IndexError), record(stack.layers, [0, 7]):
        pytest.fail("the block must not run")
    assert hooks_on(stack) == 0


@pytest.mark.parametrize("opener", ["attach", "record", "record-stop", "before"])
def test_an_exception_in_the_block_leaves_nothing_and_passes(stack: Stack, opener: str):
    block = {
        "attach": lambda: attach(stack.layers, {0: lambda h: h}),
        "record": lambda: record(stack.layers, [0, 1]),
        "record-stop": lambda: record(stack.layers, [0, 1], stop=True),
        "before": Hooks,
    }[opener]
    with pytest.raises(KeyError, match="mine"), block() as opened:
        if isinstance(opened, Hooks):
            opened.before(stack, lambda *_: None)
        assert hooks_on(stack) > 0
        raise KeyError("mine")
    assert hooks_on(stack) == 0


def test_an_exception_inside_an_edit_passes(stack: Stack):
    def fail(_hidden: Tensor) -> Tensor:
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside"), attach(stack.layers, {1: fail}):
        stack(ZERO)
    assert hooks_on(stack) == 0


def test_foreign_hooks_stay(stack: Stack):
    seen: list[str] = []
    handle = stack.layers[1].register_forward_hook(lambda *_: seen.append("foreign"))
    with attach(stack.layers, {1: lambda h: h}), record(stack.layers, [1]):
        stack(ZERO)
    stack(ZERO)
    handle.remove()
    assert seen == ["foreign", "foreign"]


def test_states_are_recorded_while_the_forward_runs_on(stack: Stack):
    with record(stack.layers, [2, 0]) as states:
        assert states == {}
        output = stack(ZERO)
    assert sorted(states) == [0, 2]
    assert torch.equal(states[0], ZERO + 1) and torch.equal(states[2], output)


def test_stop_ends_the_forward_after_the_deepest_layer(stack: Stack):
    after = False
    with record(stack.layers, [1, 0], stop=True) as states:
        stack(ZERO)
        after = True
    assert not after
    assert [layer.calls for layer in stack.layers] == [1, 1, 0]
    assert torch.equal(states[0], ZERO + 1) and torch.equal(states[1], ZERO + 11)


def test_stop_ends_the_block_that_asked_for_it(stack: Stack):
    reached = []
    with record(stack.layers, [1], stop=True) as outer:
        with record(stack.layers, [0], stop=True) as inner:
            stack(ZERO)
        reached.append("between")
        stack(ZERO)
        reached.append("never")
    assert reached == ["between"]
    assert list(inner) == [0] and list(outer) == [1]

    with record(stack.layers, [0], stop=True) as outer:
        with record(stack.layers, [1], stop=True) as inner:
            stack(ZERO)
        pytest.fail("the outer block stops first")
    assert list(outer) == [0] and inner == {}


def test_recording_sees_what_an_edit_of_a_block_inside_makes_and_no_hook_of_the_user(stack: Stack):
    user = stack.layers[0].register_forward_hook(_tenfold)
    with record(stack.layers, [0]) as states, attach(stack.layers, {0: lambda h: h * 3}):
        stack(ZERO)
    assert torch.equal(states[0], ZERO + 3)
    with record(stack.layers, [0], stop=True) as states:
        stack(ZERO)
    user.remove()
    assert torch.equal(states[0], ZERO + 1)


def _tenfold(_module: nn.Module, _args: Any, output: Any) -> Any:
    return (output[0] * 10, *output[1:]) if isinstance(output, tuple) else output * 10


def test_the_user_s_hooks_run_on_the_layer_at_which_a_forward_ends(stack: Stack):
    seen: list[int] = []
    handle = stack.layers[1].register_forward_hook(lambda *_: seen.append(1))
    with record(stack.layers, [0, 1], stop=True) as states:
        stack(ZERO)
        pytest.fail("it ends at the deepest layer")
    handle.remove()
    assert seen == [1] and sorted(states) == [0, 1]


def test_arguments_of_a_call_are_seen_before_it_runs(stack: Stack):
    seen: list[Any] = []

    def observe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs, stack.layers[0].calls))

    with Hooks() as hooks:
        hooks.before(stack, observe)
        assert torch.equal(stack(ZERO, scale=2.0), ZERO + 222)
    stack(ZERO)
    assert len(seen) == 1
    assert seen[0][0][0] is ZERO and seen[0][1:] == ({"scale": 2.0}, 0)


def test_other_threads_are_untouched(stack: Stack):
    seen: list[Any] = []
    results: dict[str, Any] = {}

    def work() -> None:
        results["output"] = stack(ZERO)

    with (
        attach(stack.layers, {0: lambda h: h * 0 - 1}),
        Hooks() as hooks,
        record(stack.layers, [1], stop=True) as states,
    ):
        hooks.before(stack, lambda *call: seen.append(call))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert states == {} and seen == []
    assert torch.equal(results["output"], ZERO + 111)


def test_a_stopped_forward_keeps_nothing_alive(stack: Stack):
    gc.disable()  # reference counts alone must do it
    try:
        with record(stack.layers, [1], stop=True) as states:
            stack(ZERO.clone())
        seen = weakref.ref(states.pop(1))
        assert seen() is None
    finally:
        gc.enable()


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


def test_a_layer_with_several_states_for_a_token_is_refused():
    class Several(nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.stack([hidden, hidden])

    layers = nn.ModuleList([Several()])
    with (
        pytest.raises(BackboneError, match=r"shape \[2, 1, 3, 4\], but an edit needs one state"),
        record(layers, [0]),
    ):
        layers[0](torch.zeros(1, 3, 4))
    assert not layers[0]._forward_hooks


def test_tensors_made_in_inference_mode_serve_gradients_later():
    weight = torch.ones(2, requires_grad=True)
    with torch.inference_mode():
        fleeting = torch.ones(2)
        with lasting_tensors():
            made, copied = weight * 2, fleeting.clone()
        assert torch.is_inference_mode_enabled() and (weight * 2).is_inference()
    assert not made.requires_grad
    (weight * made * copied).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((2,), 2.0))


@pytest.mark.parametrize("records", [True, False])
def test_gradients_are_recorded_as_they_were(records: bool):
    weight = torch.ones(2, requires_grad=True)
    with torch.set_grad_enabled(records):
        with lasting_tensors():
            assert (weight * 2).requires_grad is records
        assert torch.is_grad_enabled() is records


def test_dropout_stays_off_until_the_last_reader_ends():
    """Two threads that read one model end in any order."""
    model = nn.Sequential(nn.Linear(2, 2).eval(), nn.Dropout(0.5))
    first, second = undisturbed(model), undisturbed(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in model.modules()), "the second still reads"
    second.__exit__(None, None, None)
    assert model.training and model[1].training and not model[0].training
