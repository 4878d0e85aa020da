"""The model and its processor, with a tiny decoder in place of SmolLM2."""

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_emoji_model import SHAPE, tiny_drawings, tiny_language

from easyedit_dualedit.errors import PartsError
from easyedit_dualedit.testbed.emoji import architecture
from easyedit_dualedit.testbed.emoji.architecture import (
    IMAGE_TOKENS,
    build_model,
    build_processor,
    read_language_model,
)
from easyedit_dualedit.testbed.emoji.drawing import draw_single
from easyedit_dualedit.testbed.prompts import user_message

LANGUAGE = tiny_language()


def _prompt(processor: Any, text: str) -> str:
    chat: str = processor.apply_chat_template(
        user_message(text, 1), add_generation_prompt=True, tokenize=False
    )
    return chat


def test_a_picture_is_78_tokens_and_the_chat_has_no_system_message() -> None:
    processor: Any = build_processor(LANGUAGE.tokenizer)
    prompt = _prompt(processor, "What is this?")
    assert prompt == ("<|im_start|>user\n<image>\nWhat is this?<|im_end|>\n<|im_start|>assistant\n")
    picture = tiny_drawings().draw(draw_single("tiger", random.Random(0)))
    inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((inputs["input_ids"] == image).sum()) == IMAGE_TOKENS == 78
    whole, tile = inputs["pixel_values"][0]
    assert torch.equal(whole, tile)


def test_it_generates_and_pads_on_the_left() -> None:
    processor: Any = build_processor(LANGUAGE.tokenizer)
    model: Any = build_model(LANGUAGE, SHAPE).eval()
    picture = tiny_drawings().draw(draw_single("tiger", random.Random(0)))
    prompts = [_prompt(processor, text) for text in ("What is this?", "What?")]
    inputs = processor(images=[picture] * 2, text=prompts, return_tensors="pt", padding=True)
    assert inputs["attention_mask"][1, 0] == 0 and inputs["attention_mask"][1, -1] == 1
    with torch.no_grad():
        rows = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert rows.shape[1] <= inputs["input_ids"].shape[1] + 3


def test_the_decoder_is_the_one_given_and_new_tokens_are_the_mean() -> None:
    model: Any = build_model(LANGUAGE, SHAPE)
    rows = model.get_input_embeddings().weight
    assert torch.equal(rows, LANGUAGE.state["model.embed_tokens.weight"])
    assert torch.allclose(rows[-1], rows[:-2].mean(0), atol=1e-6)
    assert torch.equal(rows, model.lm_head.weight)


def test_without_gguf_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "gguf" else real(name, *rest),
    )
    with pytest.raises(PartsError, match="pip install"):
        read_language_model(tmp_path / "model.gguf")


def test_another_tokenizer_than_the_models_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = torch.zeros(5, 4)

    class Read:
        config = LANGUAGE.config

        def __len__(self) -> int:
            return 6

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {"model.embed_tokens.weight": rows}

    monkeypatch.setattr(architecture, "_require_gguf", lambda: None)
    for name in ("AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(architecture, name), "from_pretrained", lambda *_, **__: Read())
    with pytest.raises(PartsError, match="reads 6 tokens from model.gguf, whose model has 5"):
        read_language_model(tmp_path / "model.gguf")
