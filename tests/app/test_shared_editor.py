"""What comes of a question: the gate that is told of is the one that decided for that row."""

import pytest
from tiny_editors import picture, request_of, trained_editor
from tiny_models import TinyModel

from easyedit_dualedit.app.shared_editor import SharedEditor
from easyedit_dualedit.method.edit_memory import EditMemory
from easyedit_dualedit.model.inputs import Query


@pytest.mark.parametrize("layers", [(1, 2), (2, 1)])
def test_each_question_is_told_its_own_decision(llava: TinyModel, layers: tuple[int, int]):
    text_layer, vision_layer = layers
    editor = trained_editor(
        llava,
        text_layer=text_layer,
        vision_layer=vision_layer,
        gate={"kind": "cosine", "threshold": 0.9999},
    )
    memory = EditMemory(editor)
    (identifier,) = memory.add(request_of())
    queries = [
        Query("How many squares are there?", picture("blue", (50, 20))),
        Query("What colour is the circle?", picture()),
    ]
    outcomes = SharedEditor(editor, "tiny").outcomes(memory, queries)
    for query, outcome in zip(queries, outcomes, strict=True):
        batch = editor.encoder.encode([query])
        alone = memory.model.route(layout=batch.layout, **batch.inputs)
        assert outcome.similarity == pytest.approx(float(alone.similarity[0]), abs=1e-4)
        assert outcome.threshold == 0.9999
    assert [outcome.fired for outcome in outcomes] == [None, identifier]
    assert not outcomes[0].is_changed


def test_answers_of_the_unedited_model_are_asked_once(
    llava: TinyModel, monkeypatch: pytest.MonkeyPatch
):
    shared = SharedEditor(trained_editor(llava), "tiny")
    memory, query = EditMemory(shared.editor), Query("What is it?", picture())
    (first,) = shared.outcomes(memory, [query])
    monkeypatch.setattr(shared, "_answers", lambda *_: pytest.fail("asked again"))
    (again,) = shared.outcomes(memory, [Query("What is it?", picture())])
    assert again.before == first.before
