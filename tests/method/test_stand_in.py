"""The stand-in on which `generate` runs: its calls are told from those of the model."""

import functools
import types
from typing import Any

import pytest
import torch
from tiny_editors import request_of, trained_editor
from tiny_families import FAMILIES
from tiny_models import TinyModel

from easyedit_dualedit.errors import BackboneError
from easyedit_dualedit.method.edited_model import generate_of
from easyedit_dualedit.method.editor import DualEditor

GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": -1}


class Wrapper(torch.nn.Module):
    """A user's own module around a model of transformers."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def get_decoder(self) -> Any:
        return self.inner.get_decoder()

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)

    def generate(self, **options: Any) -> Any:
        return self.inner.generate(**options)


def with_method(model: Any) -> Any:
    kind = type(model)
    model.generate = types.MethodType(lambda self, **k: kind.generate(self, **k), model)
    return model


def with_own_generate(model: Any) -> Any:
    """Return what transformers makes of a folder that holds a generate of its own."""
    kind = type(model)
    run = lambda model, **k: kind.generate(model, **k)  # noqa: E731
    model.generate = functools.partial(run, model=model)
    return model


def with_adapters(model: Any) -> Any:
    import peft  # in collection it would take a second of each worker

    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))


def test_a_part_that_generates_may_be_compiled():
    tiny = FAMILIES["blip2"]()
    editor = trained_editor(tiny, gate="open")
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    edited = editor.edited(editor.read([request_of()]))
    expected = edited.generate(**inputs, **GREEDY)
    tiny.model.language_model = torch.compile(tiny.model.language_model, backend="eager")
    assert torch.equal(edited.generate(**inputs, **GREEDY), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("change", [Wrapper, with_method, with_own_generate, with_adapters])
def test_models_that_generate_in_another_way_are_edited(change: Any):
    tiny = FAMILIES["llava"]()
    editor = trained_editor(tiny, gate="open")
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    expected = editor.edited(editor.read([request_of()])).generate(**inputs, **GREEDY)
    plain = tiny.model.generate(**inputs, **GREEDY)
    changed = change(tiny.model)
    other = DualEditor(changed, tiny.processor, editor.config)
    other.load_state_dict(editor.state_dict())
    found = other.edited(other.read([request_of()])).generate(**inputs, **GREEDY)
    assert torch.equal(found, expected) and not torch.equal(found, plain)
    assert torch.equal(changed.generate(**inputs, **GREEDY), plain)


def test_a_generate_of_another_object_is_refused():
    tiny = FAMILIES["llava"]()
    editor = trained_editor(tiny, gate="open")
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    edited = editor.edited(editor.read([request_of()]))
    generate = tiny.model.generate
    tiny.model.generate = lambda **options: generate(**options)
    with pytest.raises(BackboneError, match="so nothing is edited"):
        edited.generate(**inputs, **GREEDY)


def test_what_generate_notes_on_the_model_stays_there(llava: TinyModel):
    model: Any = llava.model
    calls: list[str] = []

    def run(_module: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        calls.append("own")
        return forward(*args, **kwargs)

    generate = generate_of(model, (), run)
    stand_in = generate.__self__
    assert isinstance(stand_in, type(model)) and stand_in is not model
    assert type(stand_in).__name__ == type(model).__name__
    try:
        stand_in.a_note = 3
        assert model.a_note == 3
    finally:
        del model.a_note
    editor = trained_editor(llava)
    inputs = editor.encoder.encode([request_of()], with_target=False).inputs
    found = generate(**inputs, **GREEDY)
    assert calls == ["own"] * 3
    assert torch.equal(found, model.generate(**inputs, **GREEDY))
    assert calls == ["own"] * 3, "the model's own calls are not ours"
