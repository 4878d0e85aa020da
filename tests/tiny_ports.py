"""EasyEdit master's own ports of BLIP-2 and MiniGPT-4, built tiny from configurations."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from easyedit_fixtures import HAS_MASTER, needs_master
from tiny_models import IMAGE_SIZE, LAYERS, PATCH_SIZE, tiny_tokenizer
from torch import Tensor, nn

from easyedit_dualedit.method.active_edits import EditSignal
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.plugin import find_host
from easyedit_dualedit.plugin.hparams import DualEditMultimodalHparams
from easyedit_dualedit.plugin.ports.edited import PortEdited
from easyedit_dualedit.plugin.ports.model import PortModel
from easyedit_dualedit.plugin.ports.samples import PortSamples

_IS_NEW = int(transformers.__version__.partition(".")[0]) >= 5

HAVE_PORTS = HAS_MASTER and not _IS_NEW
"""Whether EasyEdit's own ports can be built here; where they cannot, stand-ins are tested."""

needs_ports = [
    needs_master,
    pytest.mark.skipif(_IS_NEW, reason="EasyEdit's own ports cannot be built on transformers 5"),
    pytest.mark.usefixtures("host", "elsewhere"),
]

QUERIES = 3
WIDTH = 32
NAMES = {"Blip2OPT": "blip2", "MiniGPT4": "minigpt4"}
ORDERS = [{"text_layer": 1, "vision_layer": 2}, {"text_layer": 2, "vision_layer": 1}]
TWO = ("What colour is the circle?", "How many squares?"), ("blue", "a red circle and a star")


class Patches(nn.Module):
    """Stands in for the vision tower: one linear map of every patch."""

    image_size = IMAGE_SIZE

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """Return the patches of pictures, [b, n, d]."""
        embedded: Tensor = self.patches(image)
        return embedded.flatten(2).transpose(1, 2)


def easyedit(name: str) -> Any:
    """Return a module of EasyEdit's, which is not importable before it is needed."""
    return find_host().module(name)


def tiny_port(name: str) -> Any:
    """Return a port with random weights of 4 decoder layers and 3 query tokens, in float32."""
    ours = "trainer.blip2_models."
    module = "blip2_opt" if name == "Blip2OPT" else "mini_gpt4"
    kind = getattr(easyedit(ours + module), name)
    torch.manual_seed(5)
    port = kind.__new__(kind)
    nn.Module.__init__(port)
    port.config = None
    port.visual_encoder = Patches()
    port.ln_vision = easyedit(ours + "blip2").LayerNorm(WIDTH)
    config = easyedit(ours + "Qformer").BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_width=WIDTH,
        add_cross_attention=True,
        cross_attention_freq=2,
        query_length=QUERIES,
    )
    port.Qformer = easyedit(ours + "Qformer").BertLMHeadModel(config)
    port.Qformer.cls = None
    port.Qformer.bert.embeddings.word_embeddings = None
    port.Qformer.bert.embeddings.position_embeddings = None
    port.query_tokens = nn.Parameter(torch.randn(1, QUERIES, 16))
    tokenizer = tiny_tokenizer()
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "Blip2OPT":
        port.opt_tokenizer = tokenizer
        modeling = easyedit(ours + "modeling_opt")
        port.opt_model = modeling.OPTForCausalLM(
            modeling.OPTConfig(ffn_dim=64, word_embed_proj_dim=WIDTH, **shape)
        )
        port.opt_proj = nn.Linear(16, WIDTH)
    else:
        port.llama_tokenizer = tokenizer
        modeling = easyedit(ours + "modeling_llama")
        port.llama_model = modeling.LlamaForCausalLM(
            modeling.LlamaConfig(intermediate_size=64, **shape)
        )
        port.llama_proj = nn.Linear(16, WIDTH)
        port.end_sym = ""
        port.prompt = True
        port.low_resource = False
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in port.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.25, generator=generator)
    return port.eval()


def port_vocabulary(port: Any) -> int:
    """Return the number of rows of the port's embeddings."""
    model = port.opt_model if hasattr(port, "opt_model") else port.llama_model
    return int(model.lm_head.out_features)


def image(seed: int = 0) -> Tensor:
    """Return a picture as EasyEdit's processor would, [3, h, w]."""
    return torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def request(
    prompt: str = "What colour is the circle?", target: str = "blue", seed: int = 0
) -> dict[str, Any]:
    """Return a request as EasyEdit's editor makes it."""
    return {
        "prompt": prompt,
        "target": target,
        "image": image(seed),
        "rephrase_prompt": "The colour of the circle is?",
        "image_rephrase": image(seed + 1),
        "locality_prompt": "Where is the star?",
        "locality_ground_truth": "top left",
        "multimodal_locality_prompt": "How many squares are there?",
        "multimodal_locality_ground_truth": "three",
        "multimodal_locality_image": image(seed + 2),
    }


def samples(
    port: Any,
    prompts: tuple[str, ...] = ("What colour is the circle?",),
    targets: tuple[str, ...] = ("blue",),
    *,
    seeing: bool = True,
) -> dict[str, Any]:
    """Return samples as EasyEdit makes them."""
    tokenizer = PortModel(port).tokenizer
    return {
        "text_input": [f"{p} {t}" for p, t in zip(prompts, targets, strict=True)],
        "image": torch.stack([image(i) for i in range(len(prompts))]) if seeing else None,
        "prompts_len": [len(tokenizer.encode(p, add_special_tokens=False)) for p in prompts],
        "labels": None if not targets else [tokenizer(" " + t)["input_ids"] for t in targets],
    }


def edited_of(editor: DualEditor, edits: list[EditSignal], **options: Any) -> PortEdited:
    """Return a port with edits."""
    return PortEdited(editor.edited(edits, **options), PortSamples.of(editor))


def signals(editor: DualEditor, given: dict[str, Any]) -> list[EditSignal]:
    """Return the edits that samples ask for."""
    return editor.read_batch(PortSamples.of(editor).read(given))


@torch.no_grad()
def logits(model: Any, given: Any) -> Tensor:
    """Return the logits of samples."""
    found: Tensor = model(given).logits
    return found


def hparams_of(port: Any, archive: Path, **changes: Any) -> DualEditMultimodalHparams:
    """Return hyperparameters that name saved adapters."""
    return DualEditMultimodalHparams(
        model_name=NAMES[type(port).__name__], device="cpu", archive=str(archive), **changes
    )
