"""The untrained testbed model and its processor, as standard transformers objects."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.testbed.facts import all_facts
from easyedit_dualedit.testbed.picture import SIDE
from easyedit_dualedit.testbed.prompts import fact_prompts, prompt_forms
from easyedit_dualedit.testbed.questions import Question, questions_about
from easyedit_dualedit.testbed.world import COLOURS, GRID, REGIONS, SHAPES, Scene, SceneObject

# transformers' image classes import torchvision, which must be importable before.
define_missing_operators()

from transformers import (  # noqa: E402
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

PAD, START, END, IMAGE, VIDEO = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<video>",
)
PATCHES = GRID * GRID
"""Patches of a picture: one for each cell of the grid."""

_VOCABULARY = 640
_EMBEDDING_SCALE = 5.0
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] in ('image', 'image_url') -%}{{ '<image>\\n' }}
{%- elif part['type'] == 'video' -%}{{ '<video>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on every wording that the world knows."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[
            AddedToken(token, normalized=False, special=True)
            for token in (PAD, START, END, IMAGE, VIDEO)
        ],
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaOnevisionProcessor:
    """Return the processor of the model: 48 by 48 pixels, one tile, the chat template."""
    size: Any = {"height": SIDE, "width": SIDE}
    scale: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return LlavaOnevisionProcessor(  # type: ignore[no-untyped-call]
        image_processor=LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[SIDE, SIDE]], **scale
        ),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size, **scale),
        num_image_tokens=PATCHES,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlavaOnevisionForConditionalGeneration:
    """Return the model with random weights drawn from ``seed``, in float32."""
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    image: Any = tokenizer.convert_tokens_to_ids(IMAGE)
    video: Any = tokenizer.convert_tokens_to_ids(VIDEO)
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=SIDE // GRID,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        # Rotary positions spoil all but the slowest dimensions of a head for comparing words with
        # image tokens; heads of 16 with the usual base leave 8, of 32 with this base 20.
        head_dim=32,  # type: ignore[call-arg]  # Qwen2's attention reads it all the same
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=[[SIDE, SIDE]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    parts: Any = model
    with torch.no_grad():
        # The usual 0.02 drowns in the random output of the first layers at this width: what a token
        # says is lost before any layer can compare it, and look-ups stay at chance.
        parts.get_input_embeddings().weight.mul_(_EMBEDDING_SCALE)
        parts.model.image_newline.normal_(0.0, 0.02 * _EMBEDDING_SCALE)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, eos_token_id=end, pad_token_id=pad, max_new_tokens=40
    )
    return model


def _corpus() -> Iterable[str]:
    for fact in all_facts():
        yield from fact_prompts(fact)
        yield from [fact.answer, fact.answer]
    for question in _one_of_each_question():
        for text in (*question.source_texts(), *question.rephrase_texts()):
            yield from prompt_forms(text)
        yield from [question.answer, f" {question.answer}"] * 4
    for colour in COLOURS:
        for shape in SHAPES:
            yield from [f"a {colour} {shape}, a {colour} {shape} and an {colour} {shape}"] * 2
    yield from [f"{START}user\n{START}assistant\n"] * 50


def _one_of_each_question() -> Iterable[Question]:
    for number, colour in enumerate(COLOURS):
        for offset, shape in enumerate(SHAPES):
            cell = (number + offset) % len(REGIONS)
            yield from questions_about(Scene((SceneObject(cell, shape, colour),)))
