import pytest

from benchmarks import near_questions
from benchmarks.near_questions import ASKED, COLUMNS, FURTHER, WORDINGS, measure
from easyedit_dualedit import DualEditor, load_model
from easyedit_dualedit.testbed import adapters_folder, model_folder


def test_every_question_is_asked_once_and_wordings_are_of_them():
    questions = [question for asked in ASKED.values() for question in asked]
    assert len(set(questions)) == len(questions) == 40
    assert WORDINGS.keys() <= set(questions)
    assert not set(WORDINGS.values()) & set(questions)
    assert FURTHER.keys() == ASKED.keys()
    assert not {each for further in FURTHER.values() for each in further} & ASKED.keys()


def test_a_question_finds_its_edit_and_counts_are_kept_apart(monkeypatch: pytest.MonkeyPatch):
    some = dict(list(ASKED.items())[:2])
    monkeypatch.setattr(near_questions, "ASKED", some)
    model, processor = load_model(str(model_folder()))
    editor = DualEditor.load(model, processor, adapters_folder("default"))
    head, _, row = measure(editor).splitlines()
    assert head.strip("| ").split(" | ") == list(COLUMNS)
    shares = [float(cell.split()[0]) for cell in row.strip("| ").split(" | ")]
    assert shares[0] == 100.0
    assert shares[5] < 100.0 and shares[6] < 100.0
