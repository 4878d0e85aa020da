"""Questions without a picture: 500 that are shipped, or those of a file, never in both splits."""

import json
from pathlib import Path

import pytest

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.general_questions import questions_in, shipped_questions


def test_five_hundred_different_questions_are_shipped_a_fifth_for_evaluation():
    train, evaluation = shipped_questions("train"), shipped_questions("eval")
    questions = [each.question for each in (*train, *evaluation)]
    assert len(questions) == 500 == len({question.casefold() for question in questions})
    assert 70 <= len(evaluation) <= 130
    assert all(question.endswith("?") for question in questions)
    assert all(each.answer.strip() == each.answer != "" for each in (*train, *evaluation))


def test_no_shipped_question_is_about_a_flag_or_the_capital_of_a_country():
    for each in (*shipped_questions("train"), *shipped_questions("eval")):
        assert "flag" not in each.question
        assert "capital" not in each.question or "United States" in each.question


def test_questions_of_a_file_are_split_by_what_they_ask_not_by_their_prefix(tmp_path: Path):
    path = tmp_path / "records.json"
    items = [{"loc": f"who wrote book {n}", "loc_ans": str(n)} for n in range(60)]
    items += [{"loc": f"nq question: Who wrote book {n} ", "loc_ans": str(n)} for n in range(60)]
    path.write_text(json.dumps(items), encoding="utf-8")
    train = {each.question for each in questions_in(path, "train")}
    evaluation = {each.question for each in questions_in(path, "eval")}
    assert len(train) + len(evaluation) == 60
    assert not train & evaluation
    assert 4 <= len(evaluation) <= 24
    path.write_text(json.dumps(items[60:] + items[:60]), encoding="utf-8")
    prefixed = {each.question for each in questions_in(path, "eval")}
    assert {text.removeprefix("nq question: ").strip().lower() for text in prefixed} == evaluation


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"loc": "a question"}], "record 0 has no text in loc and loc_ans"),
        ([{"loc": "one", "loc_ans": "1"}, "two"], "record 1 has no text"),
        ([{"loc": "who", "loc_ans": "me"}], "too few questions for the split"),
    ],
)
def test_a_file_that_will_not_do_is_told(tmp_path: Path, content: list[object], message: str):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        for split in ("train", "eval"):
            questions_in(path, split)  # type: ignore[arg-type]
