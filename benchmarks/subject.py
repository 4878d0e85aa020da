"""The model that is measured: a LLaVA of random weights in one of several shapes, or a real one."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import nn
from transformers.initialization import no_init_weights

import easyedit_dualedit.testbed as testbed
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.inputs import CACHE_NAMES, Query
from easyedit_dualedit.model.loading import load_model
from easyedit_dualedit.model.torchvision_ops import define_missing_operators
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams

_CHAT = (
    "{% for message in messages %}{{ 'USER: ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] + ' ' }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


_PROCESS_BYTES = 2**30
"""What a process with torch and transformers takes without a model, about."""

NARROW = 32
"""Width of models that serve to count alone."""

_CLASSES = (
    "AutoTokenizer",
    "CLIPImageProcessor",
    "CLIPVisionConfig",
    "LlamaConfig",
    "LlavaConfig",
    "LlavaForConditionalGeneration",
    "LlavaProcessor",
)
"""Of transformers: what the model and its processor are made of."""

_DRAWN = 1_000_003
"""Random numbers that fill all weights again and again; a prime, so that no two rows are alike."""


@dataclass(frozen=True)
class Shapes:
    """Sizes of a model and of its adapters."""

    hidden: int = 256
    inner: int = 688
    layers: int = 8
    heads: int = 8
    side: int = 112
    """Pixels; 14 of them a patch."""
    tower_hidden: int = 256
    tower_inner: int = 512
    tower_layers: int = 4
    tower_heads: int = 8
    text_layer: int = 4
    vision_layer: int = 5
    width: int = 64
    vocabulary: int | None = None
    """Rows of the embeddings; None means as many as the testbed's tokenizer has tokens."""
    dtype: torch.dtype = torch.float32
    batch: int = 4
    """Records of a timed training step."""
    repeats: int = 40
    """How often edits and forwards are timed."""
    steps: int = 40
    """How many training steps are timed; 0 where a processor would take too long or too much."""
    hparams: str | None = None
    """Name of the model's hyperparameters; None means random weights."""
    shown: int | None = None
    """Positions that a picture takes; None means one for each patch."""

    @property
    def image_tokens(self) -> int:
        """Positions that a picture takes."""
        return (self.side // 14) ** 2 if self.shown is None else self.shown

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, close to exact: norms and biases are left out."""
        tower = self.tower_layers * (4 * self.tower_hidden + 2 * self.tower_inner)
        decoder = self.layers * (4 * self.hidden + 3 * self.inner) + 2 * (self.vocabulary or 0)
        between = self.tower_hidden + self.hidden
        weights = tower * self.tower_hidden + (decoder + between) * self.hidden
        return weights * self.dtype.itemsize

    def needed_bytes(self, batch: int, *, trains: bool = True) -> int:
        """Return about how many bytes forwards take, or a training step of so many records."""
        if not trains:
            return self.weight_bytes + 2 * _PROCESS_BYTES
        # Three rows of a record run with gradient; the text rephrase stands in one of them.
        positions = 3 * batch * (self.image_tokens + 32)
        # What a layer keeps of a position, about, and the holes that it leaves in the heap.
        kept = 12 * self.hidden + 5 * self.inner
        layers = self.layers - 1 - min(self.text_layer, self.vision_layer)
        return self.weight_bytes + layers * positions * kept * self.dtype.itemsize + _PROCESS_BYTES

    def narrow(self) -> "Shapes":
        """Return random weights of the same depth and as many tokens, or as fill a square."""
        return replace(
            self,
            hparams=None,
            shown=None,
            side=14 * math.ceil(math.sqrt(self.image_tokens)),
            hidden=NARROW,
            inner=NARROW,
            heads=1,
            tower_hidden=NARROW,
            tower_inner=NARROW,
            tower_heads=1,
            width=NARROW,
            vocabulary=None,
            dtype=torch.float32,
        )


PUBLISHED = Shapes()

SHAPES: dict[str, Shapes] = {
    "published": PUBLISHED,
    "llava-1.5-7b": Shapes(
        hidden=4096,
        inner=11008,
        layers=32,
        heads=32,
        side=336,
        tower_hidden=1024,
        tower_inner=4096,
        tower_layers=24,
        tower_heads=16,
        text_layer=16,
        vision_layer=19,
        width=1024,
        vocabulary=32064,
        dtype=torch.bfloat16,
        batch=4,
        repeats=3,
        steps=0,
    ),
    "emoji": Shapes(
        hidden=576,
        inner=1536,
        layers=30,
        heads=9,
        side=96,
        tower_inner=2304,
        tower_layers=5,
        tower_heads=4,
        text_layer=15,
        vision_layer=18,
        width=512,
        vocabulary=49154,
        repeats=10,
        steps=8,
        hparams="emoji",
        shown=78,
    ),
}
"""Shapes by name: of the published measurements, of a model that people edit, of a real one."""


def model_classes() -> Any:
    """Return transformers with what the model and its processor are made of imported."""
    define_missing_operators()
    for name in _CLASSES:
        getattr(transformers, name)
    return transformers


def bytes_of_weights(editor: DualEditor) -> int:
    """Return the bytes of a model's weights and of its adapters."""
    weights = (*editor.backbone.model.parameters(), *editor.adapters.parameters())
    return sum(weight.nbytes for weight in weights)


def kept_cache(output: Any) -> dict[str, Any]:
    """Return the cache of a model's forward, by the name that transformers gives it."""
    held = dict(output)  # which names what is there, and no other name of it
    return {name: held[name] for name in CACHE_NAMES if held.get(name) is not None}


def editor_of(shapes: Shapes = PUBLISHED, device: torch.device | str = "cpu") -> DualEditor:
    """Return an editor on a fresh model, or on the one named, its adapters changing something."""
    if shapes.hparams is None:
        model, processor = _drawn(shapes, device)
    else:
        named = DualEditMultimodalHparams.from_hparams(shapes.hparams).model_name
        model, processor = load_model(named, dtype=shapes.dtype, device=device)
    settings = DualEditConfig.preset(
        "default",
        text_layer=shapes.text_layer,
        vision_layer=shapes.vision_layer,
        width=shapes.width,
        heads=8,
        gate={"kind": "cosine", "threshold": -1.0},
    )
    editor = DualEditor(model, processor, settings)
    with torch.no_grad():
        for name, parameter in editor.adapters.named_parameters():
            if "output" in name:
                parameter.normal_(0.0, 0.02)
    return editor


def _drawn(shapes: Shapes, device: torch.device | str) -> tuple[Any, Any]:
    """Return a LLaVA of random weights, and its processor."""
    classes = model_classes()
    folder = Path(testbed.__file__).parent / "llava-onevision-testbed"
    tokenizer: Any = classes.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "left"
    image = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    config = classes.LlavaConfig(
        vision_config=classes.CLIPVisionConfig(
            hidden_size=shapes.tower_hidden,
            intermediate_size=shapes.tower_inner,
            num_hidden_layers=shapes.tower_layers,
            num_attention_heads=shapes.tower_heads,
            image_size=shapes.side,
            patch_size=14,
        ),
        text_config=classes.LlamaConfig(
            vocab_size=shapes.vocabulary or len(tokenizer),
            hidden_size=shapes.hidden,
            intermediate_size=shapes.inner,
            num_hidden_layers=shapes.layers,
            num_attention_heads=shapes.heads,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=image,
        image_token_index=image,
    )
    processor: Any = classes.LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=classes.CLIPImageProcessor(
            size={"shortest_edge": shapes.side},
            crop_size={"height": shapes.side, "width": shapes.side},
        ),
        tokenizer=tokenizer,
        patch_size=14,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=_CHAT,
    )
    with torch.device(device), _weights_of(shapes.dtype), no_init_weights():
        model: Any = classes.LlavaForConditionalGeneration(config)
    model.eval().requires_grad_(False)
    _fill(model)
    return model, processor


@contextmanager
def _weights_of(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Give weights small random values; to draw each of billions would take minutes."""
    drawn = torch.randn(_DRAWN).mul_(0.02)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            values = drawn.to(parameter)
            for part in torch.split(parameter.view(-1), _DRAWN):
                part.copy_(values[: len(part)])
        elif name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("weight"):  # of a norm
            parameter.fill_(1.0)
        else:  # one token's embedding
            parameter.copy_(drawn[: len(parameter)])


def records_of(count: int, side: int = PUBLISHED.side) -> list[Record]:
    """Return records, every picture another colour, of so many pixels a side."""
    return [_record(index, side) for index in range(count)]


def _record(index: int, side: int) -> Record:
    def picture(shade: int) -> Image.Image:
        return Image.new("RGB", (side, side), (40 * index % 256, shade, 9 * index % 256))

    own = picture(10)
    return Record(
        index,
        request=Query("What colour is it?", own, "a red circle"),
        text_rephrase=Query("Which colour is the shape?", own, "a red circle"),
        image_rephrase=Query("What colour is it?", picture(90), "a red circle"),
        text_locality=Query("Where is the star?", None, "at the left"),
        image_locality=Query("How many shapes are there?", picture(170), "three"),
        prediction="blue",
        portability=(),
        template="{}",
        folder=Path("."),
    )
