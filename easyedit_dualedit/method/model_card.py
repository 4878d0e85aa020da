"""The model cards that go with saved adapters, and with edits."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCard

from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.storage.hub import names_repository

LIBRARY = "easyedit-dualedit"
TAGS = ("knowledge-editing", "vision-language")

_SECTIONS = """\
{% for title, text in (sections or {}).items() %}
## {{ title }}

{{ text }}
{% endfor %}"""

CARD_TEMPLATE = (
    """---
{{ card_data }}
---

# DualEdit adapters for {{ base_model or model_type }}

Knowledge editing of a vision-language model: a text adapter at decoder layer {{ text_layer }}, a
vision adapter at decoder layer {{ vision_layer }}, and a {{ gate }} gate (DualEdit, arXiv
2506.13638). The adapters belong to one model: {{ decoder_layers }} decoder layers of hidden size
{{ hidden_size }}
{%- if base_model %}, `{{ base_model }}`{% endif %}. Loading checks that it is the one.

```python
from PIL import Image

from easyedit_dualedit import DualEditor, Query, load_model
{%- if shipped_model %}
from {{ shipped_model }} import model_folder

model, processor = load_model(str(model_folder()))
{%- else %}

model, processor = load_model("{{ base_model or 'the model' }}")
{%- endif %}
name = "{{ repo_id or 'this repository' }}"
editor = DualEditor.from_pretrained(name, model=model, processor=processor)

picture = Image.new("RGB", (224, 224), "red")  # or Path("photo.jpg")
edited = editor.edit(picture, "What is this?", "a kite")
batch = editor.encoder.encode([Query("What is this?", picture)])
answer = edited.generate(**batch.inputs, max_new_tokens=8)
print(processor.batch_decode(answer, skip_special_tokens=True))
```

Weights are in `adapters.safetensors`, the configuration in `config.json`; nothing is pickled.
"""
    + _SECTIONS
)

EDITS_TEMPLATE = (
    """---
{{ card_data }}
---

# {{ count }} of {{ base_model or model_type }}

Knowledge edits of a vision-language model, made with DualEdit (arXiv 2506.13638) and a {{ gate }}
gate. They belong to one model and to the adapters that they were made with; loading checks both.

```python
from huggingface_hub import snapshot_download

from easyedit_dualedit import DualEditor, EditMemory, Query, load_model
{%- if shipped_model %}
from {{ shipped_model }} import adapters_folder, model_folder

model, processor = load_model(str(model_folder()))
editor = DualEditor.load(model, processor, adapters_folder("default"))
{%- else %}

model, processor = load_model("{{ base_model or 'the model' }}")
editor = DualEditor.load(model, processor, "{{ adapters or 'the adapters' }}")
{%- endif %}
memory = EditMemory.load(editor, snapshot_download("{{ repo_id }}"))

query = Query("What is this?")  # or Query("What is this?", Path("photo.jpg"))
batch = editor.encoder.encode([query])
answer = memory.model.generate(**batch.inputs, max_new_tokens=8)
print(processor.batch_decode(answer, skip_special_tokens=True))
```

Numbers are in `edits.safetensors`, questions and answers in `edits.json`; nothing is pickled.
"""
    + _SECTIONS
)


def card_values(
    config: DualEditConfig, architecture: Mapping[str, Any], base_model: str
) -> dict[str, Any]:
    """Return what the card says of adapters, but for their numbers.

    Args:
        config: of the adapters.
        architecture: `model_type`, `decoder_layers` and `hidden_size` of the model.
        base_model: what the model is called; all but a hub id is left out.
    """
    return {
        "model_type": architecture["model_type"],
        "text_layer": config.text_layer,
        "vision_layer": config.vision_layer,
        "gate": config.gate.kind,
        "decoder_layers": architecture["decoder_layers"],
        "hidden_size": architecture["hidden_size"],
        "base_model": hub_id_of(base_model),
    }


def architecture_of(backbone: Backbone) -> dict[str, Any]:
    """Return what the card says of a model."""
    model: Any = backbone.model
    return {
        "model_type": model.config.model_type,
        "decoder_layers": len(backbone.layers),
        "hidden_size": backbone.hidden_size,
    }


def hub_id_of(name: str) -> str:
    """Return a model's name if it is a hub id: a folder of one machine means nothing to others."""
    return name if names_repository(name) else ""


def with_base_model(card: ModelCard, base_model: str) -> ModelCard:
    """Return a card whose metadata name the model, if it is one of the hub."""
    if hub_id_of(base_model):
        card.data["base_model"] = base_model
    return card
