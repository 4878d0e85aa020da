"""The tower's last layer learns to say words, through the model's own path."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_emoji_model import SHAPE, THINGS, tiny_drawings, tiny_language
from torch import nn

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.testbed.emoji.architecture import TowerShape, build_model
from easyedit_dualedit.testbed.emoji.drawing import stack_pixels
from easyedit_dualedit.testbed.emoji.patch_states import patch_states
from easyedit_dualedit.testbed.emoji.patch_words import PatchWords
from easyedit_dualedit.testbed.emoji.picture_source import PictureSource
from easyedit_dualedit.testbed.emoji.word_memory import MemoryPlan, WordMemory, teach_memory

LANGUAGE = tiny_language()
WORDS = PatchWords(THINGS, LANGUAGE.tokenizer, LANGUAGE.state["model.embed_tokens.weight"])


def _memory(shape: TowerShape) -> WordMemory:
    torch.manual_seed(0)
    model: Any = build_model(LANGUAGE, shape).model
    entries = nn.Linear(shape.width, len(WORDS.token_of_entry))
    return WordMemory(model.vision_tower, model.multi_modal_projector, WORDS, entries)


def test_it_learns_to_say_words_and_the_model_says_them(tmp_path: Path) -> None:
    memory = _memory(SHAPE)
    source = PictureSource(THINGS, seed=0)
    plan = MemoryPlan(pictures=128, entry_steps=120, unit_steps=20, word_steps=60, patches=512)
    reached = teach_memory(memory, source, tiny_drawings(), plan, tmp_path, seed=0)
    chance = 1 / len(WORDS.tokens)
    assert reached["token"] > 3 * chance
    pictures = source.draw(2)
    pixels = torch.from_numpy(stack_pixels(tiny_drawings(), pictures)).float() / 127.5 - 1.0
    with torch.no_grad():
        whole = memory.projector(patch_states(memory.tower, pixels))
        memory.projector.linear_1.weight *= 40.0
        alone = memory.say(patch_states(memory.tower, pixels, below_last=True))
    assert torch.allclose(whole, alone, atol=0.05 * float(whole.abs().max()))


def test_too_few_units_are_refused() -> None:
    with pytest.raises(DataError, match="give TowerShape more units"):
        _memory(TowerShape(layers=2, width=32, heads=2, units=8))
