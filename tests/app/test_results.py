"""The HTML of results: bars, marks and words say the same."""

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from easyedit_dualedit.app.attention_map import AttentionMap
from easyedit_dualedit.app.results import results_html
from easyedit_dualedit.app.session import Shown
from easyedit_dualedit.app.shared_editor import Outcome
from easyedit_dualedit.model.inputs import Query

OPEN = Outcome(Query("What?", Image.new("RGB", (9, 9))), "red", "blue", 0.9, 0.75, "ab12")
CLOSED = Outcome(Query("Who?"), "me", "me", -0.2, 0.75)


def html_of(*outcomes: Outcome, looks: AttentionMap | str = "No reason.") -> str:
    """Return the results of outcomes."""
    shown = Shown(tuple(("a question", outcome) for outcome in outcomes), looks)
    return results_html(shown, {"ab12": "the kite"})


def test_an_open_gate_names_its_edit_and_both_numbers():
    text = html_of(OPEN)
    assert 'aria-label="gate open: similarity 0.900 ≥ threshold 0.750"' in text
    assert 'style="width:90.0%"' in text and 'style="left:75.0%"' in text
    assert "the kite" in text and "Without edits: <s>red</s>" in text


def test_a_closed_gate_has_an_empty_bar_and_no_edit():
    text = html_of(CLOSED)
    assert 'aria-label="gate closed: similarity -0.200 < threshold 0.750"' in text
    assert 'style="width:0.0%"' in text and "no edit" in text
    assert "The same as without edits." in text


@pytest.mark.parametrize("threshold", [-float("inf"), 1.5])
def test_marks_stay_on_the_bar(threshold: float):
    text = html_of(replace(OPEN, threshold=threshold))
    assert 'style="left:0.0%"' in text or 'style="left:100.0%"' in text


def test_why_nothing_is_shown_is_told():
    assert "Where the answer looks: No reason." in html_of(OPEN)


def test_where_it_looks_is_told_to_those_who_do_not_see_it():
    looks = AttentionMap(torch.tensor([[0.1, 0.2], [0.6, 0.1]]), 0.42)
    text = html_of(OPEN, looks=looks)
    assert "looked at most: row 2 of 2, column 1 of 2; 42% of the attention" in text


def test_every_picture_has_a_text():
    pictures = re.findall("<img[^>]*>", html_of(OPEN, CLOSED))
    assert len(pictures) == 1 and all(' alt="picture of a question"' in each for each in pictures)


def test_nothing_asked_says_what_to_do():
    assert "write a question" in results_html(None, {})
