"""About how many bytes a token of a row takes, from the shapes of the model."""

from dataclasses import dataclass
from typing import Any, Self

from easyedit_dualedit.model.backbone import Backbone


def bytes_of_token(backbone: Backbone) -> int:
    """Return about how many bytes a token takes while its row is read and then answered.

    Its keys and values stay, in every layer; the states around a layer's widest part do not.
    """
    shape = _Shape.of(backbone)
    cached = len(backbone.layers) * shape.keys
    # Queries, keys, values and states of half a dozen steps; a norm computes in single precision.
    return (cached + 3 * shape.inner + 6 * shape.hidden) * shape.size + 2 * 4 * shape.hidden


def trained_bytes_of_token(backbone: Backbone, layer: int, *, recomputes: bool) -> int:
    """Return about how many bytes a token takes in a training step.

    Layers above the first edited one keep what their gradient needs, or their input alone where
    they run again for it; the last of them runs at answers only.

    Args:
        backbone: parts of the model.
        layer: the first edited one.
        recomputes: whether layers run again for their gradient.
    """
    shape = _Shape.of(backbone)
    above = max(1, len(backbone.layers) - 2 - layer)
    whole = 5 * shape.hidden + 2 * (shape.queries + shape.keys // 2) + 3 * shape.inner
    kept = above * shape.hidden + whole if recomputes else above * whole
    gradients = 3 * shape.inner + 2 * shape.hidden
    return (kept + gradients) * shape.size


@dataclass(frozen=True)
class _Shape:
    """Numbers of a token in one decoder layer."""

    hidden: int
    inner: int
    queries: int
    keys: int
    """Keys and values together."""
    size: int
    """Bytes of a number."""

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        config: Any = backbone.model.config
        text = config.get_text_config()
        weight = next(p for p in backbone.model.parameters() if p.is_floating_point())
        hidden = backbone.hidden_size
        heads = getattr(text, "num_attention_heads", 1) or 1
        each = getattr(text, "head_dim", None) or hidden // heads
        kept = getattr(text, "num_key_value_heads", heads) or heads
        inner = getattr(text, "intermediate_size", None) or 4 * hidden
        return cls(hidden, inner, heads * each, 2 * kept * each, weight.element_size())
