"""Binding: which questions a record has, and which number is about which of them."""

from tiny_data import BOUND
from tiny_editors import picture

from easyedit_dualedit.data.binding import Binding
from easyedit_dualedit.measure.binding import (
    ASKED,
    BESIDE,
    PICTURE,
    SHARES,
    TEXT,
    UNTOUCHED,
    binding_questions,
)


def test_a_record_has_the_questions_that_its_fields_hold():
    whole = Binding.of(BOUND, picture(), "{}")
    assert binding_questions(whole) == {
        TEXT: whole.text,
        PICTURE: whole.picture,
        BESIDE: whole.beside,
    }
    some = {name: BOUND[name] for name in ("beside_q", "beside_a")}
    assert list(binding_questions(Binding.of(some, picture(), "{}"))) == [BESIDE]
    assert binding_questions(None) == {}


def test_every_number_compares_or_tells_answers_apart():
    assert sorted(ASKED) == sorted((*UNTOUCHED, *SHARES))
    assert {ASKED[metric] for metric in SHARES} == {PICTURE}
