"""Answers: what counts as the target, and greedy answers of any length in one batch."""

import pytest
from tiny_editors import request_of
from tiny_models import TinyModel

from easyedit_dualedit.model.answers import (
    answer_limit,
    exact_match,
    first_answer_tokens,
    greedy_answers,
    normalised,
)
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder, output_head


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("A Kite", "a kite"),
        ("a kite.", "a kite"),
        ("  a \n\t kite ", "a kite"),
        ("a kite .", "a kite"),
        ("STRASSE", "straße"),
        ("２", "2"),
        ("ﬁne", "fine"),
        ("caf\u0065\u0301", "caf\u00e9"),
        ("a\u00a0kite", "a kite"),
        ("", " ."),
    ],
)
def test_case_white_space_and_a_final_stop_do_not_count(answer: str, target: str):
    assert exact_match(answer, target) == exact_match(target, answer) == 1.0


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("a kite", "kite"),
        ("kites", "kite"),
        ("", "kite"),
        ("2.5", "25"),
        ("a kite!", "a kite"),
        ("akite", "a kite"),
        (".5", "5"),
        ("no", "yes"),
    ],
)
def test_everything_else_counts(answer: str, target: str):
    assert exact_match(answer, target) == exact_match(target, answer) == 0.0


@pytest.mark.parametrize("text", ["A  Kite.", "ＡＢＣ.", "İstanbul", "ǅ", "ﬃ…", " a . b. "])
def test_normalising_twice_is_normalising_once(text: str):
    assert normalised(normalised(text)) == normalised(text)


def test_each_row_of_a_batch_is_cut_at_a_limit_of_its_own(llava: TinyModel):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    query = request_of()
    batch = encoder.encode([query, query, query], with_target=False)
    one, three, all_of_it = greedy_answers(llava.model, encoder, batch, [1, 3, 9])
    assert len(one) < len(three) < len(all_of_it)
    assert three.startswith(one) and all_of_it.startswith(three)


def test_an_answer_may_be_longer_than_its_target_so_that_one_that_runs_on_is_seen(
    llava: TinyModel,
):
    encoder = Encoder(Backbone.of(llava.model), llava.processor)
    long = request_of(target="two blue circles in the top left corner")
    assert answer_limit(encoder, long) == len(encoder.target_ids(str(long.target))) + 8


def test_first_answers_take_logits_at_one_position_a_query(every: TinyModel):
    encoder = Encoder(Backbone.of(every.model), every.processor)
    queries = [request_of(), request_of(prompt="What is on the left of the picture?")]
    head = output_head(encoder.backbone)
    assert head is not None
    seen: list[int] = []
    handle = head.register_forward_hook(lambda _m, args, _o: seen.append(args[0][..., 0].numel()))
    found = first_answer_tokens(encoder, queries)
    handle.remove()
    assert sum(seen) == len(queries) == len(found)
