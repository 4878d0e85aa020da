import random
from dataclasses import replace

import pytest
from tiny_data import write_data
from tiny_editors import shared

from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.train.drawn_targets import WordPieces, with_drawn_targets


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("data")
    return load_records(write_data(folder), folder)


TOKENIZER = shared("llava").processor.tokenizer


class Words:
    """A tokenizer of which only the vocabulary is asked for."""

    all_special_tokens = ("<s>",)

    def __init__(self, *pieces: str) -> None:
        self._pieces = pieces

    def get_vocab(self) -> dict[str, int]:
        return {piece: place for place, piece in enumerate(self._pieces)}


def targets(records: list[Record]) -> list[str | None]:
    return [record.request.target for record in records]


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_pieces_are_letters_that_begin_a_word_or_go_on_in_one(mark: str):
    pieces = WordPieces.of(
        Words("<s>", f"{mark}cat", "ing", f"{mark}7", "!!", "x", f"{mark}Äpfel", f"{mark}a-b")
    )
    assert pieces == WordPieces(("cat",), ("ing",))


def test_a_vocabulary_without_word_marks_begins_words_with_any_piece():
    assert WordPieces.of(Words("cat", "dog")).first == ("cat", "dog")


def test_targets_have_one_to_three_words_of_pieces():
    pieces = WordPieces(("cat", "dog"), ("ing", "er"))
    drawn = [pieces.target(random.Random(seed)) for seed in range(200)]
    assert {len(target.split()) for target in drawn} == {1, 2, 3}
    assert {"cat", "dog"} <= set(drawn) and any(target.startswith("cating") for target in drawn)


def test_a_share_of_the_records_asks_for_words_of_the_vocabulary(records: list[Record]):
    many = [replace(records[n % len(records)], index=n) for n in range(400)]
    made = with_drawn_targets(many, 0.5, TOKENIZER, seed=0)
    changed = [new != old for new, old in zip(made, many, strict=True)]
    assert 150 < sum(changed) < 250
    for new, old in zip(made, many, strict=True):
        asked = {query.target for query in (new.request, new.text_rephrase, new.image_rephrase)}
        assert len(asked) == 1, "an edit and its rephrases have one answer"
        assert new.request.prompt == old.request.prompt and new.request.image is old.request.image
        assert new.text_locality == old.text_locality and new.image_locality == old.image_locality
    assert (
        len(set(targets([new for new, is_new in zip(made, changed, strict=True) if is_new]))) > 99
    )


def test_the_same_seed_draws_the_same_whatever_else_is_trained_on(records: list[Record]):
    first, again = (with_drawn_targets(records, 0.7, TOKENIZER, seed=3) for _ in range(2))
    assert first == again
    assert with_drawn_targets(records[:2], 0.7, TOKENIZER, seed=3) == first[:2]
    assert targets(with_drawn_targets(records, 0.7, TOKENIZER, seed=4)) != targets(first)


def test_no_share_changes_nothing(records: list[Record]):
    assert with_drawn_targets(records, 0.0, TOKENIZER, seed=0) == records


def test_a_vocabulary_without_letters_leaves_the_targets(records: list[Record]):
    assert with_drawn_targets(records, 1.0, Words("7", "!"), seed=0) == records
