"""Many threads on one base model, each with another edit or none, answer as each does alone."""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_editors import picture, request_of, trained_editor
from tiny_models import TinyModel
from torch import nn

from easyedit_dualedit import EditMemory, Query
from easyedit_dualedit.model.hooks import Hooks

THREADS = 64
QUERIES = [
    Query("What colour is the circle?", picture()),
    Query("How many squares?", picture("green")),
]


class Calling(OrderedDict[int, bool]):
    """Keyword flags of a module's hooks that let another thread call it before one is set."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        self.failures: list[BaseException] = []

    def __setitem__(self, key: int, value: bool) -> None:
        self._call()
        super().__setitem__(key, value)

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        self._call()

    def _call(self) -> None:
        def call() -> None:
            try:
                self.module(torch.zeros(2))
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()


def test_another_thread_may_call_while_a_hook_is_half_on():
    model = nn.Identity()
    flags = Calling(model)
    model._forward_pre_hooks_with_kwargs = flags
    seen: list[Any] = []
    with Hooks() as hooks:
        hooks.before(model, lambda args, kwargs: seen.append((args, kwargs)))
        model(torch.ones(2))
    assert not flags.failures, flags.failures
    assert len(seen) == 1, "only the call of the thread that asked"


def test_hooks_of_two_threads_never_share_a_number(monkeypatch: pytest.MonkeyPatch):
    class Slow(type):
        """A counter that a second thread reads before the first has raised it."""

        @property
        def next_id(cls) -> int:
            return cls.value

        @next_id.setter
        def next_id(cls, value: int) -> None:
            time.sleep(0.002)
            cls.value = value

    class Handle(torch.utils.hooks.RemovableHandle, metaclass=Slow):
        value = 10**9

    monkeypatch.setattr(torch.nn.modules.module, "RemovableHandle", Handle)
    monkeypatch.setattr("torch.utils.hooks.RemovableHandle", Handle)
    layer = nn.Identity()
    ready = threading.Barrier(8)

    def work() -> None:
        ready.wait()
        own = Hooks()
        own.change(layer, lambda hidden: hidden)
        ready.wait()
        counted.append(len(layer._forward_hooks))
        ready.wait()
        own.remove()

    counted: list[int] = []
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == [8] * 8
    assert not layer._forward_hooks


@pytest.fixture
def often_switched() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("often_switched")
def test_threads_answer_as_each_does_alone(llava: TinyModel, request: pytest.FixtureRequest):
    editor = trained_editor(llava, gate={"kind": "cosine", "threshold": 0.9})
    memory = EditMemory(editor)
    memory.add([request_of(target="blue"), request_of("How many squares?", "two", "green")])
    models = {
        "unedited": llava.model,
        "one edit": editor.edited(editor.read([request_of(target="red")])),
        "another": editor.edited(editor.read([request_of(target="three")])),
        "memory": memory.model,
    }
    inputs = editor.encoder.encode(QUERIES, with_target=False).inputs

    @torch.no_grad()
    def answers(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        model: Any = models[name]
        tokens = model.generate(**inputs, max_new_tokens=3, do_sample=False)
        return model(**inputs).logits, tokens

    expected = {name: answers(name) for name in models}
    assert not torch.equal(expected["unedited"][0], expected["one edit"][0])
    wrong: list[str] = []
    calls: list[str] = []
    until = time.monotonic() + request.config.getoption("--thread-seconds")

    def work(name: str) -> None:
        while True:  # once at least, however busy the machine is
            try:
                logits, tokens = answers(name)
            except Exception as error:
                wrong.append(f"{name}: {type(error).__name__}: {error}")
                return
            alone = expected[name]
            if not (torch.equal(logits, alone[0]) and torch.equal(tokens, alone[1])):
                wrong.append(f"{name}: another answer than alone")
            calls.append(name)
            if time.monotonic() >= until:
                return

    names = list(models)
    threads = [threading.Thread(target=work, args=(names[i % 4],)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong[:5]
    assert len(calls) >= THREADS
