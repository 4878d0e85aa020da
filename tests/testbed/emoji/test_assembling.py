"""Assembling: the language model from its package, the rest from a folder of weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_emoji_model import SHAPE, tiny_language

from easyedit_dualedit.errors import DataError, PartsError
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.testbed.emoji import assembling
from easyedit_dualedit.testbed.emoji.architecture import build_model
from easyedit_dualedit.testbed.emoji.assembling import assemble, put_together, write_weights

NAME = "layers.1.self_attn.q_proj"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder of weights of a tiny model: another tower, and one changed matrix."""
    torch.manual_seed(5)
    model = build_model(tiny_language(), SHAPE)
    changes = {f"{NAME}.down": torch.randn(2, 48), f"{NAME}.up": torch.randn(48, 2)}
    write_weights(tmp_path / "weights", model, SHAPE, changes)
    return tmp_path / "weights"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for that of the packages."""

    class _Parts:
        def gguf(self) -> Path:
            return tmp_path / "model.gguf"

    monkeypatch.setattr(assembling, "open_parts", lambda _: _Parts())
    monkeypatch.setattr(assembling, "read_language_model", lambda _: tiny_language())
    return tmp_path


def test_the_folder_loads_as_the_model_that_was_put_together(weights: Path, parts: Path) -> None:
    into = parts / "llava-onevision-tiny"
    assemble(parts, into, weights)
    model, processor = load_model(str(into))
    made: Any = put_together(tiny_language(), weights)
    for name, value in made.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=2e-3), name
    assert processor.tokenizer.padding_side == "left"
    assert processor.tokenizer.pad_token == "<|endoftext|>"
    assert [path.name for path in parts.iterdir() if path.name.startswith(".")] == []


def test_changes_are_added_to_the_decoder_and_nothing_else(weights: Path) -> None:
    plain: Any = build_model(tiny_language(), SHAPE)
    made: Any = put_together(tiny_language(), weights)
    before = plain.model.language_model.state_dict()
    after = made.model.language_model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{NAME}.weight"}


def test_the_card_of_the_weights_travels_along(weights: Path, parts: Path) -> None:
    (weights / "README.md").write_text("# Card\n")
    assemble(parts, parts / "llava-onevision-tiny", weights)
    assert (parts / "llava-onevision-tiny" / "README.md").read_text() == "# Card\n"


def test_refused(weights: Path, parts: Path) -> None:
    with pytest.raises(DataError, match="lacks 'llava-onevision'"):
        assemble(parts, parts / "emoji", weights)
    (parts / "llava-onevision-tiny").mkdir()
    with pytest.raises(DataError, match="exists"):
        assemble(parts, parts / "llava-onevision-tiny", weights)
    with pytest.raises(PartsError, match="lacks eyes.safetensors"):
        assemble(parts, parts / "llava-onevision-other", parts / "nothing")
