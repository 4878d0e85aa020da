"""The model card that goes with saved adapters."""

from typing import Any

from easyedit_dualedit.method.config import DualEditConfig
from easyedit_dualedit.model.backbone import Backbone

CARD_TEMPLATE = """---
{{ card_data }}
---

# DualEdit adapters for {{ model_type }}

Knowledge editing of a vision-language model: a text adapter at decoder layer {{ text_layer }}, a
vision adapter at decoder layer {{ vision_layer }}, and a {{ gate }} gate (DualEdit, arXiv
2506.13638). The adapters belong to one model: {{ decoder_layers }} decoder layers of hidden size
{{ hidden_size }}
{%- if base_model %}, `{{ base_model }}`{% endif %}. Loading checks that it is the one.

```python
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.loading import load_model

model, processor = load_model("{{ base_model or 'the model' }}")
editor = DualEditor.from_pretrained("this repository", model=model, processor=processor)
edited = editor.edit(image, "What is this?", "a kite")
```

Weights are in `adapters.safetensors`, the configuration in `config.json`; nothing is pickled.
"""


def card_values(config: DualEditConfig, backbone: Backbone) -> dict[str, Any]:
    """Return what the card says of an editor."""
    model: Any = backbone.model
    name = str(getattr(model, "name_or_path", "") or "")
    # A folder on this machine means nothing to anyone else.
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return {
        "model_type": model.config.model_type,
        "text_layer": config.text_layer,
        "vision_layer": config.vision_layer,
        "gate": config.gate.kind,
        "decoder_layers": len(backbone.layers),
        "hidden_size": backbone.hidden_size,
        "base_model": name if is_hub_id else "",
    }
