"""Tiny random vision-language models built from configs, with real processors and tokenizers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from easyedit_dualedit.model.torchvision_ops import define_missing_operators

define_missing_operators()

from transformers import (  # noqa: E402  (torchvision must be importable first)
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

SENTENCES = [
    "What colour is the circle in the picture? red green blue yellow",
    "How many squares are there? one two three four",
    "Where is the star? top left bottom right a photo of a red circle and a blue square",
    "user assistant USER ASSISTANT : The answer is: Question: Short answer:",
]
IMAGE_SIZE = 28
PATCH_SIZE = 14
LAYERS = 4

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """A model with its processor, and the family it belongs to."""

    family: str
    model: Any
    processor: Any

    def save(self, folder: Path) -> Path:
        """Return `folder` after saving the model and its processor in it."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        return folder


def tiny_tokenizer(
    *, add_bos: bool = False, extra: dict[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 400 entries trained on a few sentences.

    Args:
        add_bos: put `<s>` before every text.
        extra: name -> token of the family's own special tokens; LLaVA's unless given.
    """
    named = {"image_token": "<image>", "video_token": "<video>"} if extra is None else extra
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>", "<s>"]
    special += [token for token in dict.fromkeys(named.values()) if token not in special]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if add_bos:
        from tokenizers import processors

        bos = tokenizer.token_to_id("<s>")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if add_bos else None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=named,
    )


def tiny_llava(seed: int = 0, hidden_size: int = 32, layers: int = LAYERS) -> TinyModel:
    """Return a LLaVA-1.5 of 4 decoder layers (or others), 4 image tokens."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(add_bos=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=hidden_size,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        ),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=VICUNA,
    )
    return TinyModel("llava", finish(LlavaForConditionalGeneration(config), tokenizer), processor)


def tiny_llava_onevision(seed: int = 0) -> TinyModel:
    """Return a LLaVA-OneVision of 4 decoder layers, hidden size 32."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    video_id = tokenizer.convert_tokens_to_ids("<video>")
    pinpoints = [[28, 28], [28, 56], [56, 28]]
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_grid_pinpoints=pinpoints,
        image_token_id=image_id,
        image_token_index=image_id,
        video_token_id=video_id,
        video_token_index=video_id,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=CHATML,
    )
    model = finish(LlavaOnevisionForConditionalGeneration(config), tokenizer)
    return TinyModel("llava-onevision", model, processor)


def finish(model: Any, tokenizer: Any, deviation: float = 0.25) -> Any:
    """Return the model with wide random weights, in evaluation mode."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        # Freshly initialised models answer almost the same whatever they read; wider weights make
        # their hidden states and arg-max answers depend on the input.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, deviation, generator=generator)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    # Each token of an answer costs a forward, and random weights hardly ever choose one end of 400;
    # of these, which no text of the tests needs, there are more than a hundred.
    beyond = [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).isascii()]
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *beyond]
    return model.eval()
