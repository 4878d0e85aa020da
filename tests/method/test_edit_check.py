"""Whether edits take: what the edited model really answers, and what a user is told of it."""

from typing import Any

import pytest
import torch
from tiny_editors import request_of, tiny_config, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method import edit_check
from easyedit_dualedit.method.edit_check import EditCheck
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.answers import greedy_answers
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.row_memory import allowed_memory

GATE = {"kind": "cosine", "threshold": 0.99999}


def unchanging_editor(tiny: TinyModel) -> DualEditor:
    """Return an editor whose adapters are not trained: no edit of it takes."""
    return DualEditor(tiny.model, tiny.processor, tiny_config(gate=GATE))


def alone(model: Any, editor: DualEditor, request: Query, limit: int) -> str:
    batch = editor.encoder.encode([request], with_target=False)
    (text,) = greedy_answers(model, editor.encoder, batch, [limit])
    return text


def test_answers_are_those_that_generate_gives_to_each_request_alone(every: TinyModel):
    editor = trained_editor(every, gate=GATE)
    memory = EditMemory(editor, precision="float32")
    requests = [request_of(target="blue"), request_of("Where is the star?", "top left corner")]
    requests.append(Query("How many squares are there?", None, "two"))
    memory.add(requests)
    for request, check in zip(requests, memory.check(requests), strict=True):
        tokens = len(editor.encoder.target_ids(str(request.target)))
        assert check.request is request
        assert check.answer == alone(memory.model, editor, request, tokens + 8)
        assert check.is_open and check.similarity == pytest.approx(1.0, abs=1e-4)
        assert check.other is None


def test_memory_that_is_allowed_bounds_what_is_asked_together(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava, gate=GATE)
    memory = EditMemory(editor, precision="float32")
    requests = [request_of(f"What is at {place}?", "blue") for place in range(6)]
    memory.add(requests)
    whole = [check.answer for check in memory.check(requests)]
    asked: list[int] = []
    real = edit_check.greedy_answers

    def counted(model: Any, encoder: Any, batch: Any, limits: Any) -> list[str]:
        asked.append(batch.size)
        return real(model, encoder, batch, limits)

    monkeypatch.setattr(edit_check, "greedy_answers", counted)
    weights = sum(p.numel() * p.element_size() for p in llava.model.parameters())
    with allowed_memory(weights + 1000):
        assert [check.answer for check in memory.check(requests)] == whole
    assert asked == [1] * 6
    assert [check.answer for check in memory.check(requests)] == whole and asked[6:] == [6]


def test_an_edit_takes_if_the_whole_answer_is_the_target(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    editor = unchanging_editor(llava)
    query = request_of(target="x")
    batch = editor.encoder.encode([query], with_target=False)
    new = llava.model.generate(**batch.inputs, max_new_tokens=12, do_sample=False)[0]
    tokens = new[batch.inputs["input_ids"].shape[1] :].tolist()
    end = next(place for place in range(2, 12) if tokens[place] not in tokens[:place])
    monkeypatch.setattr(llava.model.generation_config, "eos_token_id", tokens[end])
    said = alone(llava.model, editor, query, 40)
    target = request_of(target=f" {said.upper()}. ")
    assert editor.edited(editor.read([target])).check()[0].takes
    for other in (said[:-1], f"{said} {said}"):
        check = editor.edited(editor.read([request_of(target=other)])).check()[0]
        assert not check.takes and check.answer == said
    # Without its end, the same words run on into others.
    monkeypatch.setattr(llava.model.generation_config, "eos_token_id", None)
    assert not editor.edited(editor.read([target])).check()[0].takes


def test_a_line_says_what_was_asked_what_is_answered_and_what_can_be_done(llava: TinyModel):
    editor = unchanging_editor(llava)
    request = request_of(target="blue")
    (opened,) = editor.edited(editor.read([request])).check()
    assert "the edit does not take: asked 'What colour is the circle?'" in opened.told()
    assert repr(opened.answer) in opened.told() and "not 'blue'" in opened.told()
    assert "the gate is open" in opened.told() and "train" in opened.told()
    other = editor.edited(editor.read([request_of("Where is it?", "two")]))
    (closed,) = other.check([request])
    assert not closed.is_open
    assert "the gate is closed (similarity 0." in closed.told() and "threshold" in closed.told()
    (without,) = editor.edited([]).check([request])
    assert not without.is_open and not without.takes
    assert EditCheck(request, "Blue.", 1.0, True).told().startswith("the edit takes")


def test_an_edit_that_a_newer_one_overrules_names_it(llava: TinyModel):
    memory = EditMemory(trained_editor(llava, gate=GATE))
    old, new = request_of(target="green"), request_of(target="blue")
    memory.add([old])
    memory.add([new])
    first, second = memory.check([old, new])
    assert first.other == "'What colour is the circle?' -> 'blue'"
    assert "another edit answers ('What colour is the circle?' -> 'blue')" in first.told()
    assert second.other is None


def test_the_model_is_left_as_it_is(every: TinyModel):
    editor = trained_editor(every, gate=GATE)
    offsets = [
        (part, part.rope_deltas) for part in every.model.modules() if "rope_deltas" in vars(part)
    ]
    every.model.train()
    try:
        editor.edited(editor.read([request_of()])).check()
        assert every.model.training
    finally:
        every.model.eval()
    assert all(part.rope_deltas is offset for part, offset in offsets)


def test_more_edits_than_one_batch_holds_are_asked_in_order(llava: TinyModel):
    editor = trained_editor(llava, gate=GATE)
    requests = [request_of(f"What is circle {place}?", "blue") for place in range(19)]
    checks = editor.edited(editor.read(requests)).check()
    assert [check.request for check in checks] == requests
    assert all(check.other is None for check in checks)


def test_where_memory_ends_fewer_are_asked_at_once(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    editor = trained_editor(llava, gate=GATE)
    requests = [request_of(f"What is circle {place}?", "blue") for place in range(19)]
    model = editor.edited(editor.read(requests))
    whole = model.check()
    asked: list[int] = []

    def answers(*arguments: Any) -> list[str]:
        rows = len(arguments[-1])
        if rows > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        asked.append(rows)
        return greedy_answers(*arguments)

    monkeypatch.setattr("easyedit_dualedit.method.edit_check.greedy_answers", answers)
    assert [(each.request, each.answer) for each in model.check()] == [
        (each.request, each.answer) for each in whole
    ]
    assert sum(asked) == 19 and max(asked) > 1


def test_requests_that_are_not_known_must_be_given(llava: TinyModel):
    editor = trained_editor(llava, gate=GATE)
    memory = EditMemory(editor)
    memory.add(request_of())
    with pytest.raises(DataError, match="1 edits do not hold their requests"):
        memory.model.check()
    with pytest.raises(DataError, match="has no target"):
        memory.model.check([Query("What?", None, None)])
    with pytest.raises(DataError, match=r"no edit of 'What\?' -> 'blue' is held"):
        memory.check(Query("What?", None, "blue"))


def test_a_memory_keeps_each_answer_with_its_edit_and_writes_it(llava: TinyModel, tmp_path: Any):
    editor = trained_editor(llava, gate=GATE)
    memory = EditMemory(editor)
    asked, unasked = request_of(), request_of("Where is the star?", "top left")
    memory.add([asked, unasked])
    assert [edit.provenance.takes for edit in memory] == [None, None]
    (check,) = memory.check(asked)
    memory.save(tmp_path)
    for held in (memory, EditMemory.load(editor, tmp_path)):
        assert [edit.provenance.answer for edit in held] == [check.answer, None]
        assert [edit.provenance.takes for edit in held] == [check.takes, None]
