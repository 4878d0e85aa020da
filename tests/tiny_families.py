"""Tiny random models of every family in the contract, built from configs."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny_models import (
    CHATML,
    IMAGE_SIZE,
    LAYERS,
    PATCH_SIZE,
    TinyModel,
    finish,
    tiny_llava,
    tiny_llava_onevision,
    tiny_tokenizer,
)

_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
_QWEN_CHAT = CHATML.replace("<image>\\n", "<|vision_start|><|image_pad|><|vision_end|>").replace(
    "<video>\\n", "<|vision_start|><|video_pad|><|vision_end|>"
)
_INTERN_TOKENS = {
    "image_token": "<IMG_CONTEXT>",
    "context_image_token": "<IMG_CONTEXT>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "video_token": "<video>",
}
_GEMMA_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
_GEMMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_IDEFICS_CHAT = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
}
_SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


def tiny_blip2(seed: int = 0, hidden_size: int = 32) -> TinyModel:
    """Return a BLIP-2 with OPT: image tokens before the BOS token, no chat template."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(add_bos=True, extra={})
    config = transformers.Blip2Config(
        vision_config={**_VISION, "hidden_size": hidden_size},
        qformer_config={
            "hidden_size": hidden_size,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "encoder_hidden_size": hidden_size,
            "vocab_size": 30,
        },
        text_config=transformers.OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            ffn_dim=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            word_embed_proj_dim=hidden_size,
            max_position_embeddings=256,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=_id(tokenizer, "<image>"),
    )
    processor = transformers.Blip2Processor(
        transformers.BlipImageProcessor(size=_SQUARE), tokenizer, num_query_tokens=4
    )
    model = transformers.Blip2ForConditionalGeneration(config)
    return TinyModel("blip2", finish(model, tokenizer), processor)


def tiny_qwen2_vl(seed: int = 0) -> TinyModel:
    """Return a Qwen2-VL: multimodal rotary positions, images of any size."""
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": PATCH_SIZE,
    }
    text = {**_TEXT, "rope_parameters": _mrope([1, 1, 2])}
    return _tiny_qwen("qwen2-vl", "Qwen2VL", vision, text, seed)


def tiny_qwen2_5_vl(seed: int = 0) -> TinyModel:
    """Return a Qwen2.5-VL: window attention in the vision tower."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "num_heads": 2,
        "patch_size": PATCH_SIZE,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    text = {**_TEXT, "rope_parameters": _mrope([1, 1, 2])}
    return _tiny_qwen("qwen2.5-vl", "Qwen2_5_VL", vision, text, seed)


def tiny_qwen3_vl(seed: int = 0) -> TinyModel:
    """Return a Qwen3-VL: features of the vision tower are also added to early decoder layers."""
    text = {**_TEXT, "head_dim": 8, "rope_parameters": _mrope([2, 1, 1], mrope_interleaved=True)}
    vision = {**_QWEN3_VISION, "deepstack_visual_indexes": [0]}
    return _tiny_qwen("qwen3-vl", "Qwen3VL", vision, text, seed)


def tiny_qwen3_5(seed: int = 0) -> TinyModel:
    """Return a Qwen3.5: linear attention in three of four decoder layers."""
    text = {
        **_TEXT,
        "head_dim": 8,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_conv_kernel_dim": 4,
        "layer_types": ["linear_attention", "full_attention"] * (LAYERS // 2),
        "rope_parameters": {
            **_mrope([2, 1, 1], mrope_interleaved=True),
            "partial_rotary_factor": 1,
        },
    }
    return _tiny_qwen("qwen3.5", "Qwen3_5", _QWEN3_VISION, text, seed)


def tiny_internvl(seed: int = 0) -> TinyModel:
    """Return an InternVL: an image may be cut into tiles."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(extra=_INTERN_TOKENS)
    config = transformers.InternVLConfig(
        vision_config={**_VISION, "image_size": [56, 56], "patch_size": [14, 14]},
        text_config=transformers.Qwen2Config(**_TEXT, **ids_of(tokenizer)).to_dict(),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    size = {"height": 56, "width": 56}
    processor = transformers.InternVLProcessor(
        transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=2),
        tokenizer,
        transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=CHATML.replace("<image>", "<IMG_CONTEXT>"),
    )
    model = transformers.InternVLForConditionalGeneration(config)
    return TinyModel("internvl", finish(model, tokenizer), processor)


def tiny_gemma3(seed: int = 0) -> TinyModel:
    """Return a Gemma 3: image tokens see each other both ways, sliding windows, BOS by template."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(add_bos=True, extra=_GEMMA_TOKENS)
    text = transformers.Gemma3TextConfig(
        **_TEXT, head_dim=8, sliding_window=16, query_pre_attn_scalar=8, **ids_of(tokenizer)
    )
    config = transformers.Gemma3Config(
        text_config=text.to_dict(),
        vision_config={**_VISION, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size=_SQUARE),
        tokenizer,
        chat_template=_GEMMA_CHAT,
        image_seq_length=4,
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    return TinyModel("gemma3", finish(model, tokenizer), processor)


def tiny_idefics3(seed: int = 0) -> TinyModel:
    """Return an Idefics3: image tokens in rows, with text tokens between."""
    return _tiny_idefics("idefics3", "Idefics3", seed)


def tiny_smolvlm(seed: int = 0) -> TinyModel:
    """Return a SmolVLM."""
    return _tiny_idefics("smolvlm", "SmolVLM", seed)


def tiny_paligemma(seed: int = 0) -> TinyModel:
    """Return a PaliGemma: the whole prompt sees itself both ways, no chat template."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(add_bos=True, extra={"image_token": "<image>"})
    image_processor = transformers.SiglipImageProcessor(size=_SQUARE)
    image_processor.image_seq_length = 4
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)
    tokenizer.backend_tokenizer.post_processor = None  # as PaliGemma's own: no BOS by itself
    text = transformers.GemmaConfig(**_TEXT, head_dim=8, **ids_of(tokenizer))
    config = transformers.PaliGemmaConfig(
        text_config=text.to_dict(),
        vision_config={**_VISION, "vision_use_head": False, "projection_dim": 32},
        image_token_index=_id(tokenizer, "<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    model = transformers.PaliGemmaForConditionalGeneration(config)
    return TinyModel("paligemma", finish(model, tokenizer), processor)


_QWEN3_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "num_heads": 2,
    "patch_size": PATCH_SIZE,
    "num_position_embeddings": 16,
}

_BUILDERS: dict[str, tuple[str, Callable[..., TinyModel]]] = {
    "blip2": ("Blip2ForConditionalGeneration", tiny_blip2),
    "gemma3": ("Gemma3ForConditionalGeneration", tiny_gemma3),
    "idefics3": ("Idefics3ForConditionalGeneration", tiny_idefics3),
    "internvl": ("InternVLForConditionalGeneration", tiny_internvl),
    "llava": ("LlavaForConditionalGeneration", tiny_llava),
    "llava-onevision": ("LlavaOnevisionForConditionalGeneration", tiny_llava_onevision),
    "paligemma": ("PaliGemmaForConditionalGeneration", tiny_paligemma),
    "qwen2-vl": ("Qwen2VLForConditionalGeneration", tiny_qwen2_vl),
    "qwen2.5-vl": ("Qwen2_5_VLForConditionalGeneration", tiny_qwen2_5_vl),
    "qwen3-vl": ("Qwen3VLForConditionalGeneration", tiny_qwen3_vl),
    "qwen3.5": ("Qwen3_5ForConditionalGeneration", tiny_qwen3_5),
    "smolvlm": ("SmolVLMForConditionalGeneration", tiny_smolvlm),
}

FAMILIES: dict[str, Callable[..., TinyModel]] = {
    family: build
    for family, (model_class, build) in _BUILDERS.items()
    if hasattr(transformers, model_class)
}
"""Family -> builder of a tiny model, for every family that the installed transformers has."""


def _tiny_qwen(
    family: str, prefix: str, vision: dict[str, Any], text: dict[str, Any], seed: int
) -> TinyModel:
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(extra=_QWEN_TOKENS)
    config = getattr(transformers, f"{prefix}Config")(
        text_config={**text, **ids_of(tokenizer)},
        vision_config=vision,
        image_token_id=_id(tokenizer, "<|image_pad|>"),
        video_token_id=_id(tokenizer, "<|video_pad|>"),
        vision_start_token_id=_id(tokenizer, "<|vision_start|>"),
        vision_end_token_id=_id(tokenizer, "<|vision_end|>"),
    )
    size = {"shortest_edge": 56 * 56, "longest_edge": 56 * 112}
    newer = prefix.startswith("Qwen3")
    video = transformers.Qwen3VLVideoProcessor if newer else transformers.Qwen2VLVideoProcessor
    kind = "Qwen3VL" if newer else prefix
    processor = getattr(transformers, f"{kind}Processor")(
        transformers.Qwen2VLImageProcessor(size=size, patch_size=PATCH_SIZE),
        tokenizer,
        video(size=size, patch_size=PATCH_SIZE),
        chat_template=_QWEN_CHAT,
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    return TinyModel(family, finish(model, tokenizer), processor)


def _tiny_idefics(family: str, prefix: str, seed: int) -> TinyModel:
    torch.manual_seed(seed)
    places = {f"place_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)}
    tokenizer = tiny_tokenizer(
        extra={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
            **places,
        }
    )
    config = getattr(transformers, f"{prefix}Config")(
        vision_config=_VISION,
        text_config=transformers.LlamaConfig(**_TEXT, **ids_of(tokenizer)).to_dict(),
        image_token_id=_id(tokenizer, "<image>"),
        scale_factor=2,
    )
    # Transformers 5.5 loads another backend from a folder than it gives by name.
    backend = "Pil" if transformers.__version__.startswith("5.5.") else ""
    parts: list[Any] = [
        getattr(transformers, f"{prefix}ImageProcessor{backend}")(
            size={"longest_edge": 2 * IMAGE_SIZE},
            max_image_size={"longest_edge": IMAGE_SIZE},
            do_image_splitting=True,
        ),
        tokenizer,
    ]
    if prefix == "SmolVLM":
        edge = {"longest_edge": IMAGE_SIZE}
        parts.append(transformers.SmolVLMVideoProcessor(size=edge, max_image_size=edge))
    processor = getattr(transformers, f"{prefix}Processor")(
        *parts, image_seq_len=1, chat_template=_IDEFICS_CHAT
    )
    model = getattr(transformers, f"{prefix}ForConditionalGeneration")(config)
    return TinyModel(family, finish(model, tokenizer), processor)


def _mrope(sections: list[int], **extra: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections, **extra}


def ids_of(tokenizer: Any) -> dict[str, Any]:
    """Return what a language model's configuration needs to know of a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))
