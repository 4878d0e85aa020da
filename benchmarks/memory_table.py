"""Peak memory of training, gate and evaluation for models of 7B, by counting tensors.

    python -m benchmarks.memory_table

builds each model at full size on meta tensors, in bfloat16, and runs what takes most: the decoder
over as many rows as are packed, with pictures of 640 by 480, or a video of 64 frames. Attention
counts as on a GPU, where its matrix is never written out.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks.expected import shipped_training
from benchmarks.live_bytes import LiveBytes
from benchmarks.subject import kept_cache
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import output_head
from easyedit_dualedit.model.hooks import record
from easyedit_dualedit.model.row_budget import RowBudget
from easyedit_dualedit.model.row_memory import allowed_memory
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.train.gate_reading import BATCH_TOKENS

define_missing_operators()

import transformers  # noqa: E402  (torchvision must be importable first)

GIB = 2**30
BOUND = 24 * GIB
_WORDS = 48
"""Tokens of template, question and answer beside a picture."""
_ANSWER = 8
_LOOKED_AT = 8
"""Pictures that pass the vision tower together."""
_FRAMES = 64
_FRAME_TOKENS = 196
_VIDEOS = 2
"""Videos that pass the vision tower together: the request's, and that of the image rephrase."""


@dataclass(frozen=True)
class Family:
    """A model, and what it makes of a picture of 640 by 480."""

    name: str
    hparams: str
    """Short name of its shipped hyperparameters."""
    build: Callable[[], Any]
    image_tokens: int
    crops: int
    side: int
    frames: int | None = None
    """Of a video that is shown in place of a picture."""


def llava() -> Any:
    """Return LLaVA-1.5-7B."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = transformers.LlamaConfig(vocab_size=32064)  # the rest is that of 7B
    config = transformers.LlavaConfig(vision_config=vision, text_config=text)
    return transformers.LlavaForConditionalGeneration(config)


@cache  # it is on no device, and two rows of the table are of it
def onevision() -> Any:
    """Return LLaVA-OneVision-7B."""
    vision = transformers.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )
    text = transformers.Qwen2Config(
        vocab_size=152128,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    config = transformers.LlavaOnevisionConfig(vision_config=vision, text_config=text)
    return transformers.LlavaOnevisionForConditionalGeneration(config)


# 640 by 480 is four tiles of 384 and the whole: 40 by 54 patches, 40 line ends, 27 by 27 patches.
FAMILIES = (
    Family("LLaVA-1.5-7B", "llava-1.5-7b", llava, 576, 1, 336),
    Family("LLaVA-OneVision-7B", "llavaov-7b", onevision, 40 * 54 + 40 + 27 * 27, 5, 384),
    Family(
        "LLaVA-OneVision-7B, 64 frames",
        "llavaov-7b",
        onevision,
        _FRAMES * _FRAME_TOKENS + 1,
        1,
        384,
        _FRAMES,
    ),
)


def peaks(family: Family) -> dict[str, float]:
    """Return the peak of each stage in bytes, weights included, and what is packed."""
    with _bfloat16(), torch.device("meta"):
        model = family.build().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.set_attn_implementation(counted_attention())
    backbone = Backbone.of(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    width = family.image_tokens + _WORDS
    training = shipped_training(family.hparams)
    with allowed_memory(BOUND):
        rows = max(map(len, RowBudget.of(backbone).parts([width] * 64)))
        packed = RowBudget.for_training(
            backbone, training["text_layer"], recomputes=training["checkpoint_activations"]
        )
        at_once = max(map(len, packed.parts([_pictures(training) * width] * 4)))
    found = {"weights": float(weights), "rows": float(rows), "tokens of a row": float(width)}
    work = Work(rows, max(1, BATCH_TOKENS // width), training["batch_size"], at_once)
    for name, taken in taken_by_stages(backbone, family, training, work).items():
        found[name] = float(weights + taken)
    return found


@dataclass(frozen=True)
class Work:
    """How much runs at once."""

    asked: int
    """Rows of an evaluation's forward."""
    read: int
    """Rows of one of the gate's readings."""
    batch: int
    """Records of a training step."""
    packed: int
    """Records of a training step's forward, where memory is limited."""


def taken_by_stages(
    backbone: Backbone, family: Family, training: dict[str, Any], work: Work
) -> dict[str, int]:
    """Return what each stage takes beside the weights at its peak, in bytes.

    Args:
        backbone: of a model on the meta device, its attention `counted_attention`.
        family: what the model makes of a picture.
        training: hyperparameters of a training.
        work: how much runs at once.
    """
    width = family.image_tokens + _WORDS
    stages: dict[str, Callable[[], None]] = {
        "pictures": lambda: _looked(backbone, family),
        "evaluate, answers fed in": lambda: _forced(backbone, work.asked, width),
        "evaluate, free answers": lambda: _free(backbone, work.asked, width),
        "gate": lambda: _gate(backbone, work.read, width, training["text_layer"]),
        "train": lambda: _trained(backbone, training, work.batch, family),
        "train, 4 records, as packed": lambda: _trained(backbone, training, work.packed, family),
    }
    taken = {}
    for name, stage in stages.items():
        with LiveBytes([*backbone.model.parameters(), *backbone.model.buffers()]) as live:
            stage()
        taken[name] = live.peak
    return taken


@torch.no_grad()
def _looked(backbone: Backbone, family: Family) -> None:
    model: Any = backbone.model
    sides = (3, family.side, family.side)
    if family.frames is not None:
        # As the processor gives them, and as the tower reads them.
        read = torch.empty(_VIDEOS, family.frames, *sides, device="meta", dtype=torch.float32)
        model.model.get_video_features(
            read.to(torch.bfloat16),
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        return
    pixels = torch.empty(_LOOKED_AT * family.crops, *sides, device="meta", dtype=torch.bfloat16)
    model.model.multi_modal_projector(model.model.vision_tower(pixels).last_hidden_state)


@torch.no_grad()
def _forced(backbone: Backbone, rows: int, width: int) -> None:
    hidden = backbone.decoder(inputs_embeds=_states(backbone, rows, width), use_cache=False)[0]
    _head(backbone)(hidden[:, :_ANSWER]).argmax(-1)


@torch.no_grad()
def _free(backbone: Backbone, rows: int, width: int) -> None:
    output = backbone.decoder(inputs_embeds=_states(backbone, rows, width), use_cache=True)
    _head(backbone)(output[0][:, -1:]).float()
    kept = kept_cache(output)
    del output
    for _ in range(2):  # a step lays each layer's keys and values anew
        step = _states(backbone, rows, 1)
        hidden = backbone.decoder(inputs_embeds=step, use_cache=True, **kept)[0]
        _head(backbone)(hidden).float()


@torch.no_grad()
def _gate(backbone: Backbone, rows: int, width: int, layer: int) -> None:
    with record(backbone.layers, [layer], stop=True):
        backbone.decoder(inputs_embeds=_states(backbone, rows, width), use_cache=False)


def _trained(backbone: Backbone, training: dict[str, Any], records: int, family: Family) -> None:
    """Train on some records; of each, request and rephrase share a row.

    Pictures run together, long videos each in a forward of its own. Text alone is little beside
    them, adapters and Adam's moments are 0.6 GiB more.
    """
    width, rows = family.image_tokens + _WORDS, _pictures(training) * records
    together = rows if family.frames is None else 1
    losses = [
        _loss(backbone, training, together, width, shares=part % _pictures(training) == 0)
        for part in range(rows // together)
    ]
    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]


def _loss(
    backbone: Backbone, training: dict[str, Any], rows: int, width: int, *, shares: bool
) -> Tensor:
    layer = training["text_layer"]
    mask = None
    if shares:
        width += _WORDS // 2  # the rephrase
        mask = torch.ones(rows, 1, width, width, dtype=torch.bool, device="meta")
    states = _states(backbone, rows, width)
    with torch.no_grad(), record(backbone.layers, [layer], stop=True) as seen:
        backbone.decoder(inputs_embeds=states, attention_mask=mask, use_cache=False)
    hidden = seen[layer].requires_grad_()  # as adapters change it
    positions = torch.arange(width, device="meta")[None]
    rotary: Any = backbone.decoder.rotary_emb  # type: ignore[union-attr]
    call = {"position_embeddings": rotary(hidden, positions), "attention_mask": mask}
    for each in backbone.layers[layer + 1 :]:
        if training.get("checkpoint_activations"):
            made = checkpoint(each, hidden, use_reentrant=False, **call)
        else:
            made = each(hidden, **call)
        hidden = made[0] if isinstance(made, tuple) else made
    logits = _head(backbone)(hidden[:, :_ANSWER]).float()
    wanted = torch.zeros(rows * _ANSWER, dtype=torch.long, device="meta")
    return functional.cross_entropy(logits.flatten(0, 1), wanted)


def _pictures(training: dict[str, Any]) -> int:
    """Return how many rows of a record have a picture: that of locality, if it is trained on."""
    return 3 if training["cloc"] else 2


def _states(backbone: Backbone, rows: int, width: int) -> Tensor:
    shape = (rows, width, backbone.hidden_size)
    return torch.empty(shape, device="meta", dtype=torch.bfloat16)


def _head(backbone: Backbone) -> nn.Module:
    head = output_head(backbone)
    if head is None:
        raise TypeError("the model has no lm_head")
    return head


class _Fused(torch.autograd.Function):
    """Attention that keeps its arguments and a number a query for the gradient, as fused ones."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        bias = mask
        if mask is not None:
            bias = torch.empty_like(mask, dtype=query.dtype)
        made = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, made, sums, bias)
        return made

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        return *(torch.empty_like(each) for each in ctx.saved_tensors[:3]), None


def counted_attention() -> str:
    """Return the name under which transformers knows an attention that is only counted."""

    def attend(
        _module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *_rest: Any,
        **_more: Any,
    ) -> tuple[Tensor, None]:
        if mask is not None:  # then keys are repeated for each head of queries
            repeats = query.shape[1] // key.shape[1]
            key, value = (each.repeat_interleave(repeats, 1) for each in (key, value))
        made: Tensor = _Fused.apply(query, key, value, mask)  # type: ignore[no-untyped-call]
        return made.transpose(1, 2).contiguous(), None

    transformers.AttentionInterface.register("counted", attend)
    return "counted"


@contextmanager
def _bfloat16() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def table() -> list[str]:
    """Return the lines of the table."""
    every = {family.name: peaks(family) for family in FAMILIES}
    lines = [f"| GiB | {' | '.join(every)} |", f"|---|{'---|' * len(every)}"]
    for name in next(iter(every.values())):
        unit = GIB if name not in ("rows", "tokens of a row") else 1
        numbers = (f"{found[name] / unit:.1f}" for found in every.values())
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    return lines


def main() -> None:
    """Print the table."""
    sys.stdout.write("\n".join([*table(), ""]))


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    main()
