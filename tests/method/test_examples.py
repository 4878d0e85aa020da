"""The examples in the docstrings of the main classes run, and print what they say."""

import doctest
import importlib
from typing import Any

import pytest
from tiny_editors import picture, trained_editor
from tiny_models import TinyModel

CLASSES = {
    "Encoder": "model.encoder",
    "DualEditConfig": "method.config",
    "Gate": "method.gate",
    "DualEditor": "method.editor",
    "EditMemory": "method.edit_memory",
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_example_of_a_main_class_runs(llava: TinyModel, name: str):
    module = importlib.import_module(f"easyedit_dualedit.{CLASSES[name]}")
    editor = trained_editor(llava, gate="open")
    names: dict[str, Any] = {
        **vars(module),
        "model": llava.model,
        "processor": llava.processor,
        "image": picture("red"),
        "editor": editor,
    }
    query = module.Query("What is this?", names["image"]) if hasattr(module, "Query") else None
    if query is not None:
        names["inputs"] = editor.encoder.encode([query]).inputs
    examples = doctest.DocTestParser().get_doctest(
        getattr(module, name).__doc__, names, name, module.__file__, 0
    )
    assert examples.examples, "a main class shows how it is used"
    told: list[str] = []
    outcome = doctest.DocTestRunner().run(examples, out=told.append)
    assert outcome.failed == 0, "".join(told)
