from typing import Any

import pytest
import torch
from tiny_emoji_model import SHAPE, THINGS, tiny_drawings, tiny_language

from benchmarks import kinds
from benchmarks.kinds import drawn, measure
from easyedit_dualedit.testbed.emoji.architecture import build_model, build_processor
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords


def test_names_and_kinds_are_asked_of_pictures_and_of_their_exact_words(
    monkeypatch: pytest.MonkeyPatch,
):
    asked = drawn(THINGS, singles=2, pairs=1)
    assert [each.group for each in asked] == [
        *["name, single", "kind, single"] * 2,
        *["name, one of two", "kind, one of two"] * 2,
    ]
    language = tiny_language()
    model: Any = build_model(language, SHAPE).eval()
    processor = build_processor(language.tokenizer)
    words = PatchWords(THINGS, processor.tokenizer, model.model.language_model.embed_tokens.weight)
    said: list[torch.Tensor] = []
    calls: list[torch.Tensor] = []
    real = kinds.answers

    def answered(*given: Any) -> list[str]:
        said.clear()
        projector = model.model.multi_modal_projector
        handle = projector.register_forward_hook(lambda *call: said.append(call[2]))
        real(*given)
        handle.remove()
        calls.append(torch.cat(said))
        return [each.answer if len(calls) == 2 else "?" for each in given[3]]

    monkeypatch.setattr(kinds, "answers", answered)
    head, _, *rows = measure(model, processor, THINGS, tiny_drawings(), asked).splitlines()
    assert head == "| asked for | on the picture | on its exact words | of |"
    groups = [row.split(" | ")[0].strip("| ") for row in rows]
    assert groups == sorted({"name, all", "kind, all", *(each.group for each in asked)})
    assert all("| 0.0 (" in row and "| 100.0 (" in row for row in rows)
    pictures = [each.picture for each in asked if each.picture]
    exact = words.embeddings[words.token_of_entry[words.of(pictures)[0]]]
    assert torch.equal(calls[1][::2], exact) and torch.equal(calls[1][1::2], exact)
    assert not torch.equal(calls[0], calls[1])
