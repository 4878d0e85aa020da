"""ComprehendEdit's two metrics over the samples nearest to an edit."""

from pathlib import Path

import pytest
from tiny_comprehend_edit import comprehend_edit_folder
from tiny_editors import trained_editor
from tiny_models import tiny_llava

from easyedit_dualedit.data.comprehend_edit import Nearest
from easyedit_dualedit.data.records import load_records
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.asking import Replies, Reply
from easyedit_dualedit.measure.nearest import nearest_questions
from easyedit_dualedit.measure.questions import Questions, asked_protocols, require_questions
from easyedit_dualedit.measure.scores import score
from easyedit_dualedit.model.inputs import Query


def test_generalisation_is_right_answers_and_preservation_the_same_ones() -> None:
    near = Nearest(
        (Query("A?", None, "red"), Query("B?", None, "blue")),
        tuple(Query(f"{name}?", None, "yes") for name in "CDEF"),
    )
    questions = Questions({}, near=nearest_questions(near))
    names = list(questions.near)
    assert names[0] == "nearest_wrong_0" and names[-1] == "nearest_right_3"
    before = dict(zip(names, ("green", "blue", "yes", "yes", "no", "no"), strict=True))
    after = dict(zip(names, ("Red.", "green", "yes", "no", "no", "no"), strict=True))
    replies = [
        Replies({name: Reply(text=text) for name, text in said.items()}, 0.0)
        for said in (before, after)
    ]
    encoder = trained_editor(tiny_llava()).encoder
    found = score(questions, *replies, encoder, ("comprehendedit",))
    assert found == {
        "comprehendedit": {"knowledge_generalisation": 0.5, "knowledge_preservation": 0.75}
    }


def test_they_are_asked_where_records_have_them(tmp_path: Path) -> None:
    folder = comprehend_edit_folder(tmp_path)
    tested = load_records(folder / "ComprehendEdit_test.json", folder)
    trained = load_records(folder / "ComprehendEdit_train.json", folder)
    wanted = ("generate", "comprehendedit")
    assert asked_protocols(tested, wanted) == ["generate", "comprehendedit"]
    assert asked_protocols(trained, wanted) == ["generate"]
    assert len(Questions.of(tested[0], ("comprehendedit",)).near) == 6
    assert not Questions.of(tested[0], ("generate",)).near
    with pytest.raises(DataError, match="none of the 3 records has the field img_topk"):
        require_questions(trained, ["comprehendedit"])
