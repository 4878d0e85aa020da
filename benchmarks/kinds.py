"""What bounds the kinds that the emoji model knows: the pictures that it reads, or its decoder.

``python -m benchmarks.kinds`` asks for names and kinds on pictures that training never showed,
once as they are and once with the words in place of the pictures that the tower should have read,
and prints how many answers are exact.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from easyedit_dualedit import load_model
from easyedit_dualedit.measure.intervals import interval
from easyedit_dualedit.testbed.emoji.drawing import Drawings, Picture, draw_pair, draw_single
from easyedit_dualedit.testbed.emoji.measuring import Asked, answers
from easyedit_dualedit.testbed.emoji.parts import default_folder, open_parts
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.places import model_folder
from easyedit_dualedit.testbed.emoji.questions import questions_about, word
from easyedit_dualedit.testbed.emoji.things import Thing

_NAMES, _KINDS = ("name", "left", "right"), ("kind", "kind left", "kind right")
_BATCH = 24
_LONGEST = 14
_VIEWS = 2
"""Of each picture: the model sees the whole and one tile."""


def drawn(things: Sequence[Thing], singles: int, pairs: int) -> list[Asked]:
    """Return the questions about pictures of one thing and of two, by group."""
    source = random.Random("kinds 1")
    by_name = {thing.name: thing for thing in things}
    names = list(by_name)
    asked: list[Asked] = []
    for number in range(singles + pairs):
        if number < singles:
            picture = draw_single(source.choice(names), source, unseen=True)
        else:
            picture = draw_pair(*source.choices(names, k=2), source, unseen=True)
        many = "one of two" if number >= singles else "single"
        for question in questions_about(picture, by_name):
            if question.family in (*_NAMES, *_KINDS):
                what = "kind" if question.family in _KINDS else "name"
                asked.append(
                    Asked(picture, f"{what}, {many}", word(question, source), question.answer)
                )
    return asked


@contextmanager
def exact_words(model: Any, words: PatchWords, pictures: Sequence[Picture]) -> Iterator[None]:
    """Let the projector say what it should say of pictures inside the block."""

    def replace(_module: Any, _args: Any, output: Tensor) -> Tensor:
        said = words.embeddings[words.token_of_entry[words.of(pictures)[0]]]
        return said.repeat_interleave(_VIEWS, 0).to(output.dtype)

    handle = model.model.multi_modal_projector.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def measure(
    model: Any, processor: Any, things: Sequence[Thing], drawings: Drawings, asked: Sequence[Asked]
) -> str:
    """Return a Markdown table of exact answers, percent with 95 % intervals."""
    embeddings = model.model.language_model.embed_tokens.weight.detach()
    words = PatchWords(things, processor.tokenizer, embeddings)
    right: dict[str, list[tuple[bool, bool]]] = {}
    for start in tqdm(range(0, len(asked), _BATCH), unit="batch"):
        part = asked[start : start + _BATCH]
        read = answers(model, processor, drawings, part, _LONGEST)
        with exact_words(model, words, [each.picture for each in part if each.picture]):
            told = answers(model, processor, drawings, part, _LONGEST)
        for each, *said in zip(part, read, told, strict=True):
            found = [answer.strip() == each.answer for answer in said]
            for group in (each.group, f"{each.group.partition(',')[0]}, all"):
                right.setdefault(group, []).append((found[0], found[1]))
    lines = ["| asked for | on the picture | on its exact words | of |", "|---|---|---|---|"]
    for group, found in sorted(right.items()):
        shares = [interval([float(each[way]) for each in found]) for way in (0, 1)]
        cells = [f"{each.mean:.1f} ({each.low:.1f}–{each.high:.1f})" for each in shares]
        lines.append(f"| {group} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    parts = open_parts(default_folder())
    things = parts.things()
    model, processor = load_model(str(model_folder()), dtype="float32")
    asked = drawn(things, singles=300, pairs=80)
    sys.stdout.write(measure(model, processor, things, parts.drawings(things), asked) + "\n")


if __name__ == "__main__":
    main()
