"""How rare the tokens of questions are: what a question is about is mostly its rarest words."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


@dataclass(frozen=True)
class Rarity:
    """Weights of tokens, by which the mean over a prompt tells what the question is about.

    A token's weight is two shares multiplied: its inverse document frequency among
    the questions, and the logarithm of its place in the vocabulary, since tokenizers list frequent
    tokens first and a few hundred questions do not have most words. What every prompt has, such as
    the chat template, weighs nothing.
    """

    weights: Tensor
    """Float32 [v], 0 to 1."""
    _tokenizer: Any

    @classmethod
    def of(cls, encoder: Encoder, questions: Sequence[str]) -> "Rarity":
        """Return the weights that distinct questions give.

        Args:
            encoder: makes prompts of them.
            questions: at least one.
        """
        prompts, _ = encoder.read([Query(question) for question in questions])
        seen = Counter(token for each in prompts for token in {*each["input_ids"].tolist()})
        size = max(len(encoder.tokenizer), max(seen) + 1)
        having = torch.zeros(size)
        for token, count in seen.items():
            having[token] = count
        total = math.log(len(questions) + 1)
        inverse = (total - (having + 1).log()) / total
        place = torch.arange(2.0, size + 2).log() / math.log(size + 1)
        return cls(inverse * place, encoder.tokenizer)

    def siblings(self, questions: Sequence[str]) -> list[str]:
        """Return each question with its rarest word replaced by that of the next that has another.

        They ask the same about something else, which an edit of the question must leave alone.
        Where no question has another such word, a question is its own sibling.
        """
        split = [question.split() for question in questions]
        rarest = [
            max(range(len(words)), key=lambda at: self._of_word(words[at])) for words in split
        ]
        named = [_bare(words[at]) for words, at in zip(split, rarest, strict=True)]
        made = []
        for place, (words, at) in enumerate(zip(split, rarest, strict=True)):
            others = (name for name in named[place + 1 :] + named[:place] if name != named[place])
            changed = words[at].replace(named[place], next(others, named[place]))
            made.append(" ".join([*words[:at], changed, *words[at + 1 :]]))
        return made

    def _of_word(self, word: str) -> float:
        ids = self._tokenizer(f" {_bare(word)}", add_special_tokens=False)["input_ids"]
        return max((float(self.weights[token]) for token in ids), default=0.0)


def _bare(word: str) -> str:
    """Return a word without the punctuation around it, or as it is if it is nothing else."""
    return word.strip("?!.,;:\"'()") or word
