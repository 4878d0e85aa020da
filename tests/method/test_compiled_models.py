"""Base models that torch.compile has compiled are edited, and stay compiled and unedited."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers
from tiny_editors import request_of, trained_editor
from tiny_models import tiny_llava

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.method.editor import DualEditor

LAYERS = {"text_layer": 0, "vision_layer": 1}
"""Of models of two layers: each more takes a second to compile."""

GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**inputs).logits
    return result


def compiled(function: Any) -> Any:
    return torch.compile(function, backend="eager")


def the_forward(model: Any) -> None:
    model.forward = compiled(model.forward)


def the_model(model: Any) -> None:
    model.compile(backend="eager")


def a_part(model: Any) -> None:
    model.model.language_model = compiled(model.model.language_model)


def the_layers(model: Any) -> None:
    for layer in model.model.language_model.layers:
        layer.compile(backend="eager")


@pytest.mark.parametrize(
    ("compile_it", "layers"),
    [(the_forward, (0, 1)), (the_model, (1, 0)), (a_part, (0, 1)), (the_layers, (1, 0))],
)
def test_an_edit_shows_and_the_model_stays_as_it_is(
    compile_it: Callable[[Any], None],
    layers: tuple[int, int],
    caplog: pytest.LogCaptureFixture,
):
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", text_layer=layers[0], vision_layer=layers[1])
    inputs = editor.encoder.encode([request_of()]).inputs
    plain = logits(tiny.model, inputs)
    expected = logits(editor.edited(editor.read([request_of()])), inputs)
    assert not torch.allclose(expected, plain, atol=1e-2)

    compile_it(tiny.model)
    logits(tiny.model, inputs)  # code is made before there is a hook
    with caplog.at_level(logging.WARNING, logger="easyedit_dualedit"):
        edited = editor.edited(editor.read([request_of()]))
        torch.testing.assert_close(logits(edited, inputs), expected)
    warned = [r for r in caplog.records if r.name.startswith("easyedit_dualedit")]
    assert len(warned) == 1 and "torch.compile" in warned[0].getMessage()
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(logits(tiny.model, inputs), plain)


def test_a_compiled_copy_of_the_model_is_edited_too():
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", **LAYERS)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    edited = editor.edited(editor.read([request_of()]))
    expected, said = logits(edited, inputs), edited.generate(**inputs, **GREEDY)
    model = compiled(tiny.model)
    other = DualEditor(model, tiny.processor, editor.config)
    other.load_state_dict(editor.state_dict())
    logits(model, inputs)
    edited = other.edited(other.read([request_of()]))
    torch.testing.assert_close(logits(edited, inputs), expected)
    assert torch.equal(edited.generate(**inputs, **GREEDY), said)


def test_generate_may_compile_the_steps_after_the_prompt():
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", **LAYERS)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    edited = editor.edited(editor.read([request_of()]))
    expected, plain = (m.generate(**inputs, **GREEDY) for m in (edited, tiny.model))
    config = transformers.CompileConfig(backend="eager", fullgraph=False)
    config._compile_all_devices = True
    options = {**GREEDY, "cache_implementation": "static", "compile_config": config}
    for _ in range(2):
        assert torch.equal(edited.generate(**inputs, **options), expected)
        assert torch.equal(tiny.model.generate(**inputs, **options), plain)
    assert tiny.model._compiled_call.__wrapped__.__self__ is tiny.model


def test_a_function_that_calls_an_edited_model_may_be_compiled():
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", **LAYERS)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    first, second = (
        editor.edited(editor.read([request_of(target=target)])) for target in ("blue", "red two")
    )
    models = [first, tiny.model, second, first]
    wanted = [logits(model, inputs) for model in models]
    ask = compiled(lambda model: logits(model, inputs))
    for model, expected in zip(models, wanted, strict=True):
        torch.testing.assert_close(ask(model), expected)


def test_not_both_of_them():
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", **LAYERS)
    inputs = editor.encoder.encode([request_of()]).inputs
    edited = editor.edited(editor.read([request_of()]))
    the_forward(tiny.model)
    ask = compiled(lambda: logits(edited, inputs))
    with pytest.raises(BackboneError, match="compile one of them alone"):
        ask()


def test_threads_leave_the_stance_of_torch_as_it_was():
    tiny = tiny_llava(layers=2)
    editor = trained_editor(tiny, gate="open", **LAYERS)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    plain = logits(tiny.model, inputs)
    edited = editor.edited(editor.read([request_of()]))
    expected = logits(edited, inputs)
    the_model(tiny.model)
    logits(tiny.model, inputs)
    wrong: list[int] = []

    def work(model: Any, wanted: torch.Tensor) -> None:
        for turn in range(8):
            if not torch.allclose(logits(model, inputs), wanted, atol=1e-4):
                wrong.append(turn)

    pairs = [(edited, expected), (tiny.model, plain)] * 3
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch._dynamo.eval_frame._stance.stance == "default"
