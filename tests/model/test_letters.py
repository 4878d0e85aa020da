"""Prompts are told apart by how their words are spelled, whatever the case and the tokens."""

import torch
from tiny_models import TinyModel
from torch.nn import functional

from easyedit_dualedit.model.letters import LETTERS_WIDTH, TokenLetters, spelling


class Pieces:
    """A tokenizer of a few pieces, as SentencePiece has them."""

    pieces = ("▁France", "▁fr", "ance", "▁Japan", "?", "▁7", "<0xE5>")

    def convert_ids_to_tokens(self, id_: int) -> str:
        return self.pieces[id_]

    def decode(self, ids: list[int]) -> str:
        text = "".join(self.pieces[id_] for id_ in ids).replace("▁", " ").strip()
        return text.replace("<0xE5>", "\N{REPLACEMENT CHARACTER}")


def _said(ids: list[int], weights: list[float] | None = None) -> torch.Tensor:
    shares = torch.ones(1, len(ids)) if weights is None else torch.tensor([weights])
    (made,) = TokenLetters(Pieces()).of(torch.tensor([ids]), shares)
    return made


def test_a_word_in_other_tokens_is_spelled_alike():
    assert torch.equal(_said([0, 4]), _said([1, 2])), "case and signs do not count"
    assert _said([0]).shape == (LETTERS_WIDTH,) and _said([0]).dtype == torch.float32
    alike = functional.cosine_similarity(_said([0]), _said([3]), dim=0)
    assert abs(float(alike)) < 0.5


def test_words_do_not_run_together():
    both = _said([0, 3])
    torch.testing.assert_close(both, _said([0]) + _said([3]))


def test_a_word_weighs_as_its_heaviest_token_and_tokens_of_no_weight_not_at_all():
    spelled = torch.from_numpy(spelling("france"))
    torch.testing.assert_close(_said([1, 2], [0.25, 0.5]), 0.5 * spelled)
    torch.testing.assert_close(_said([0, 3], [0.5, 0.0]), 0.5 * spelled)


def test_marks_have_no_spelling_and_single_signs_and_parts_of_letters_have_one():
    assert not _said([4]).any() and not spelling("").any()
    assert _said([5]).any() and _said([6]).any()


def test_every_tokenizer_spells_words_alike_in_a_sentence_and_alone(every: TinyModel):
    tokenizer = every.processor.tokenizer
    letters = TokenLetters(tokenizer)

    def spelled(text: str) -> torch.Tensor:
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        (made,) = letters.of(torch.tensor([asked]), torch.ones(1, len(asked)))
        return made

    words = ("what", "colour", "is", "the", "circle")
    together = spelled("What colour is the circle?")
    torch.testing.assert_close(together, sum(torch.from_numpy(spelling(word)) for word in words))
