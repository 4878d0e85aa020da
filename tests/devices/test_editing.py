"""Edits on a device: read, decided, applied, generated with, kept in memories and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import fast
from tiny_devices import REQUESTS, Subject, is_there
from tiny_editors import trained_editor
from tiny_families import FAMILIES

from easyedit_dualedit.method.config import GATE_KINDS, GateConfig
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.method.packing import PRECISIONS, Precision
from easyedit_dualedit.model.inputs import Batch, input_device
from easyedit_dualedit.train.step import TrainingStep


@torch.no_grad()
def logits(model: Any, batch: Batch, **extra: Any) -> torch.Tensor:
    found: torch.Tensor = model(**batch.inputs, **extra).logits
    return found


def test_an_edited_model_answers_as_on_the_cpu(subject: Subject):
    other = trained_editor(FAMILIES[subject.tiny.family]())
    answers = []
    for editor in (subject.editor, other):
        assert editor.gate.mean.device == input_device(editor.backbone.model)
        edited = editor.edited(editor.read(REQUESTS))
        batch = editor.encoder.encode(REQUESTS)
        answers.append(logits(edited, batch, layout=batch.layout))
    found, expected = answers
    assert is_there(found)
    assert not is_there(expected)
    real = other.encoder.encode(REQUESTS).layout.real
    torch.testing.assert_close(found.cpu()[real], expected[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("edits", [1, 3])
def test_forwards_of_some_rows_with_some_edits(subject: Subject, rows: int, edits: int):
    editor = subject.editor
    edited = editor.edited(editor.read(REQUESTS[:edits]), gate=subject.always())
    batch = subject.encode(REQUESTS[:rows])
    routing = edited.route(layout=batch.layout, **batch.inputs)
    assert is_there(routing.edit_index)
    assert bool(routing.is_open.all())
    for extra in ({"layout": batch.layout}, {"labels": batch.labels}, {}):
        if extra or subject.tiny.processor.chat_template:  # else nothing tells the prompt's end
            assert is_there(logits(edited, batch, **extra))
    chosen = torch.zeros(rows, dtype=torch.long)
    assigned = editor.edited(editor.read(REQUESTS[:edits]), assignment=chosen)
    assert is_there(logits(assigned, batch, layout=batch.layout))


# Which positions and layers an edit takes does not depend on the family.
@pytest.mark.parametrize(
    "changes",
    [
        {"last_prompt_token": False},
        {"signal": "prompt+target"},
        {"signal": "all"},
        {"modalities": ["vision"]},
        {"text_layer": 2, "vision_layer": 1},
        {"text_layer": 2, "vision_layer": 2},
    ],
    ids=str,
)
def test_other_edits(llava: Subject, changes: dict[str, Any]):
    editor = trained_editor(llava.tiny, **changes)
    edited = editor.edited(editor.read(REQUESTS), gate=llava.always())
    batch = llava.encode()
    for layout in (batch.layout, None):
        assert is_there(logits(edited, batch, layout=layout))
    losses = TrainingStep.within(editor, fast()).losses(llava.records[:2], fast())
    losses.total.backward()
    assert all(is_there(each.grad) for each in editor.adapters.parameters())


@pytest.mark.parametrize("kind", GATE_KINDS)
def test_every_kind_of_gate_decides(subject: Subject, kind: Any):
    editor = subject.editor
    gate = editor.gate.with_config(GateConfig(kind, None if kind == "open" else 0.5))
    edited = editor.edited(editor.read(REQUESTS), gate=gate)
    batch = subject.encode()
    routing = edited.route(layout=batch.layout, **batch.inputs)
    if kind != "open":
        assert routing.edit_index.tolist() == [0, 1, 2]
    assert is_there(logits(edited, batch, layout=batch.layout))


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}],
    ids=["greedy", "beams", "sampled", "without a cache"],
)
def test_generate(subject: Subject, options: dict[str, Any]):
    editor = subject.editor
    edited = editor.edited(editor.read(REQUESTS), gate=subject.always())
    prompt = subject.encode(with_target=False)
    tokens = edited.generate(**prompt.inputs, **{"max_new_tokens": 3, "do_sample": False} | options)
    assert is_there(tokens)
    assert len(tokens) == 3 * options.get("num_return_sequences", 1)


def test_a_memory_is_added_to_taken_from_saved_and_loaded(subject: Subject, tmp_path: Path):
    require_memory(subject, "int8", tmp_path)


# What an edit is packed in does not depend on the family.
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_memory_of_every_precision(llava: Subject, precision: Precision, tmp_path: Path):
    require_memory(llava, precision, tmp_path)


def require_memory(subject: Subject, precision: Precision, folder: Path) -> None:
    """Fail unless a memory holds, saves, loads and forgets edits."""
    memory = EditMemory(subject.editor, gate=subject.always(), precision=precision)
    ids = memory.add(REQUESTS)
    batch = subject.encode()
    routing = memory.model.route(layout=batch.layout, **batch.inputs)
    assert routing.edit_index.tolist() == [0, 1, 2]
    said = logits(memory.model, batch, layout=batch.layout)
    memory.save(folder)
    loaded = EditMemory.load(subject.editor, folder, gate=subject.always())
    assert torch.equal(logits(loaded.model, batch, layout=batch.layout), said)
    memory.remove(ids[0])
    assert is_there(logits(memory.model, batch, layout=batch.layout))
    memory.merge(loaded)
    assert len(memory) == 3
    memory.clear()
    assert torch.equal(logits(memory.model, batch), logits(subject.model, batch))


def test_adapters_are_saved_and_loaded(subject: Subject, tmp_path: Path):
    subject.editor.save(tmp_path)
    loaded = DualEditor.load(subject.model, subject.tiny.processor, tmp_path)
    assert all(map(is_there, loaded.state_dict().values()))
    batch = subject.encode()
    found, expected = (
        logits(editor.edited(editor.read(REQUESTS)), batch, layout=batch.layout)
        for editor in (loaded, subject.editor)
    )
    assert torch.equal(found, expected)
