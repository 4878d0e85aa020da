"""Checks the method at the real widths of published models, with random weights.

    python tests/full_width.py --output docs

builds each model at full width with two decoder layers and two vision layers, runs a real prompt
with a picture of the full number of image tokens through edit, forward, `generate` and a training
step, and builds the whole model on meta tensors for what depends on depth. It writes
`full_width.json`, and the table in `backbones.md`.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_editors import entering, hooks_of_ours, picture
from tiny_families import FAMILIES, ids_of
from tiny_models import TinyModel, finish

from easyedit_dualedit.method.adapter import DualAdapters
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.hooks import attach
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.losses import answer_cross_entropy

_BEGIN, _END = "<!-- full width: begin -->", "<!-- full width: end -->"


def llava(layers: int, tower: int, tokens: dict[str, Any] | None) -> Any:
    """Return the configuration of LLaVA-1.5-7B with so many decoder and vision layers."""
    return transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": tower,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        text_config=transformers.LlamaConfig(
            **{"vocab_size": 32064, **(tokens or {})},
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=32,
        ),
    )


def blip2(layers: int, tower: int, tokens: dict[str, Any] | None) -> Any:
    """Return the configuration of BLIP-2-OPT-2.7B with so many decoder and vision layers."""
    return transformers.Blip2Config(
        vision_config={"num_hidden_layers": tower},
        qformer_config={"num_hidden_layers": min(tower, 12)},
        text_config=transformers.OPTConfig(
            **{"vocab_size": 50304, **(tokens or {})},
            hidden_size=2560,
            ffn_dim=10240,
            num_hidden_layers=layers,
            num_attention_heads=32,
            word_embed_proj_dim=2560,
        ).to_dict(),
        num_query_tokens=32,
    )


def qwen2_vl(layers: int, tower: int, tokens: dict[str, Any] | None) -> Any:
    """Return the configuration of Qwen2-VL-7B with so many decoder and vision layers."""
    return transformers.Qwen2VLConfig(
        text_config={
            **{"vocab_size": 152064, **(tokens or {})},
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": layers,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        vision_config={"depth": tower, "hidden_size": 3584},
    )


MODELS: dict[str, tuple[str, str, Callable[..., Any], int, int]] = {
    "LLaVA-1.5-7B": ("llava", "LlavaForConditionalGeneration", llava, 32, 24),
    "BLIP-2-OPT-2.7B": ("blip2", "Blip2ForConditionalGeneration", blip2, 32, 39),
    "Qwen2-VL-7B": ("qwen2-vl", "Qwen2VLForConditionalGeneration", qwen2_vl, 28, 32),
}


def built(name: str, layers: int, tower: int, *, few_image_tokens: bool = False) -> TinyModel:
    """Return a model of full width, with the tiny family's tokenizer.

    Args:
        name: key of `MODELS`.
        layers: decoder layers.
        tower: layers of the vision tower.
        few_image_tokens: pictures of the least size that the tower takes, not of the real one.
    """
    family, model_class, configured, _, _ = MODELS[name]
    processor = FAMILIES[family]().processor
    config = configured(layers, tower, ids_of(processor.tokenizer))
    image = processor.tokenizer.convert_tokens_to_ids(str(processor.image_token))
    config.image_token_id = config.image_token_index = image
    if family == "llava":
        side = 56 if few_image_tokens else 336
        config.vision_config.image_size = side
        size = {"height": side, "width": side}
        processor.image_processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    elif family == "blip2":
        size = {"height": 224, "width": 224}
        processor.image_processor = transformers.BlipImageProcessor(size=size)
        processor.num_query_tokens = 32
    else:
        area = 56 * 112 if few_image_tokens else 448 * 448
        pixels = {"shortest_edge": min(area, 448 * 448), "longest_edge": area}
        processor.image_processor = transformers.Qwen2VLImageProcessor(size=pixels)
        tokens = processor.tokenizer
        config.vision_start_token_id = tokens.convert_tokens_to_ids("<|vision_start|>")
        config.vision_end_token_id = tokens.convert_tokens_to_ids("<|vision_end|>")
        config.video_token_id = tokens.convert_tokens_to_ids("<|video_pad|>")
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config)
    return TinyModel(family, finish(model, processor.tokenizer, 0.02), processor)


def checked(name: str) -> dict[str, Any]:
    """Return what was measured of one model; an assertion fails if an invariant does not hold."""
    start = time.perf_counter()
    tiny = built(name, layers=2, tower=2)
    config = DualEditConfig.from_dict({"text_layer": 0, "vision_layer": 1, "gate": "open"})
    editor = DualEditor(tiny.model, tiny.processor, config)
    request = Query("What colour is the circle?", picture(size=(300, 300)), "blue")
    batch = editor.encoder.encode([request])
    with torch.no_grad():
        before = tiny.model(**batch.inputs).logits
        untrained = editor.edited(editor.read([request]))
        assert torch.equal(untrained(**batch.inputs).logits, before), "an untrained adapter acts"
        closed = editor.gate.with_config(type(editor.gate.config)("cosine", 1.0))
        other = editor.encoder.encode([Query("Where is the star?", picture("blue"), "top")])
        plain = tiny.model(**other.inputs).logits
        shut = editor.edited(editor.read([request]), gate=closed)
        assert not bool(shut.route(**other.inputs).is_open.any())
        assert torch.equal(shut(**other.inputs).logits, plain), "a closed gate acts"
    losses = []
    optimiser = torch.optim.Adam(editor.adapters.parameters(), lr=1e-3)
    tiny.model.requires_grad_(False)
    for _ in range(3):
        edited = editor.edited(editor.read([request]))
        logits = edited(layout=batch.layout, **batch.inputs).logits
        loss = answer_cross_entropy(logits, batch.labels)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    assert losses[-1] < losses[0], f"training does not lower the loss: {losses}"
    with torch.no_grad():
        edited = editor.edit(request.image, request.prompt, "blue")
        clean, seen = (
            entering(editor.backbone.layers[1], each, batch) for each in (tiny.model, edited)
        )
        assert torch.equal((seen != clean).any(-1), batch.layout.text), "other positions change"
        prompt = editor.encoder.encode([request], with_target=False)
        made = edited.generate(**prompt.inputs, max_new_tokens=1, do_sample=False)
        first = edited(layout=prompt.layout, **prompt.inputs).logits[0, -1].argmax()
        assert int(made[0, -1]) == int(first), "generation differs from a forward"
        assert torch.equal(tiny.model(**batch.inputs).logits, before), "the model was changed"
    assert not hooks_of_ours(tiny.model)
    return {
        "image tokens": int(batch.layout.vision.sum()),
        "loss of three steps": [round(loss, 3) for loss in losses],
        "seconds": round(time.perf_counter() - start),
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
        **whole(name),
    }


def whole(name: str) -> dict[str, Any]:
    """Return sizes of the whole model, built on meta tensors, with edits at the usual layers."""
    _, model_class, configured, depth, tower = MODELS[name]
    with torch.device("meta"):
        model = getattr(transformers, model_class)(configured(depth, tower, None))
        model.config.image_token_index = 1
        backbone = Backbone.of(model)
        backbone.require_layers(range(depth))
        layers = (depth // 2, round(depth * 19 / 32))
        config = DualEditConfig(*layers)
        adapters = DualAdapters(backbone.hidden_size, config)
        hidden = torch.empty(1, 8, backbone.hidden_size)
        passed: list[int] = []

        def edit(place: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def change(states: torch.Tensor) -> torch.Tensor:
                passed.append(place)
                return states + torch.zeros_like(states)

            return change

        with attach(backbone.layers, {layer: edit(layer) for layer in layers}):
            backbone.decoder.config._attn_implementation = "eager"
            out = backbone.decoder(
                inputs_embeds=hidden, attention_mask=torch.ones(1, 8, dtype=torch.long)
            )
    assert out.last_hidden_state.shape == hidden.shape and passed == list(layers)
    count = sum(p.numel() for p in model.parameters())
    added = sum(p.numel() for p in adapters.parameters())
    return {
        "decoder layers": depth,
        "parameters, billions": round(count / 1e9, 2),
        "adapters, millions": round(added / 1e6, 1),
        "edited at": list(layers),
    }


def _child(name: str, queue: Any) -> None:
    queue.put(checked(name))


def main() -> None:
    """Check every model in a process of its own, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    source = arguments.output / "full_width.json"
    found: dict[str, Any] = json.loads(source.read_text()) if source.exists() else {}
    for name in arguments.models:
        queue = context.Queue()
        process = context.Process(target=_child, args=(name, queue))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{name} failed")
        found[name] = queue.get()
        sys.stdout.write(f"{name}: {found[name]}\n")
        source.write_text(json.dumps(found, indent=1) + "\n")
    columns = list(next(iter(found.values())))
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, values in found.items():
        lines.append(f"| {name} | {' | '.join(str(values[column]) for column in columns)} |")
    page = arguments.output / "backbones.md"
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = "\n".join(lines)
    page.write_text(f"{before}{_BEGIN}\n{table}\n{_END}{after}")


if __name__ == "__main__":
    main()
