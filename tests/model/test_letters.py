"""Prompts are told apart by how their tokens are spelled, whatever the case and the tokens."""

import torch
from tiny_models import TinyModel
from torch.nn import functional

from easyedit_dualedit.model.letters import LETTERS_WIDTH, TokenLetters, spelling


class Pieces:
    """A tokenizer of a few pieces."""

    pieces = ("France", " fr", "ance", "Japan", "?", "7")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[id_] for id_ in ids)


def test_a_word_in_other_tokens_is_spelled_alike():
    letters = TokenLetters(Pieces())
    ids = torch.tensor([[0, 4], [1, 2], [3, 4]])
    made = letters.of(ids, torch.ones_like(ids).float())
    assert made.shape == (3, LETTERS_WIDTH) and made.dtype == torch.float32
    unit = functional.normalize(made, dim=-1)
    alike, apart = float(unit[0] @ unit[1]), float(unit[0] @ unit[2])
    assert alike > 0.8 > apart


def test_tokens_of_no_weight_are_not_looked_at():
    letters = TokenLetters(Pieces())
    ids = torch.tensor([[0, 99]])
    made = letters.of(ids, torch.tensor([[0.5, 0.0]]))
    torch.testing.assert_close(made[0], 0.5 * torch.from_numpy(spelling("france")))


def test_marks_have_no_spelling_and_single_signs_have_one():
    assert not spelling("?! ").any() and not spelling("").any()
    assert spelling("7").any() and spelling("\u56fd").any()
    assert (spelling("a-b") == spelling("ab")).all()


def test_every_tokenizer_spells_its_tokens(every: TinyModel):
    tokenizer = every.processor.tokenizer
    ids = torch.tensor(
        [tokenizer("What colour is the circle?", add_special_tokens=False).input_ids]
    )
    assert TokenLetters(tokenizer).of(ids, torch.ones_like(ids).float()).any()
