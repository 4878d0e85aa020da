"""What the frozen layers gave for some rows, and the layers above run on it, edited or not.

The model's own decoder runs them, so that masks, positions and the final norm are the model's.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.hooks import LayerEdit, attach, record
from easyedit_dualedit.model.inputs import Batch
from easyedit_dualedit.model.layer_swaps import (
    compiled,
    recomputed,
    replaced,
    skipped,
    trimmed,
)
from easyedit_dualedit.train.shared_rows import CommonPrefixes, SharedRows


@dataclass(frozen=True)
class FrozenOutput:
    """Output of the first edited layer, before any edit. Shapes: b rows, s tokens, d size."""

    backbone: Backbone
    batch: Batch
    layer: int
    states: Tensor
    """Output of `layer`, [b, s, d]."""
    call: Mapping[str, Any]
    """What the decoder was called with, for all rows."""
    prefixes: CommonPrefixes
    trims: bool = True
    """Whether the last layer that is asked for runs only at the positions asked for."""
    compiles: bool = False
    """Whether layers that run at all positions are compiled."""
    recomputes: bool = False
    """Whether layers run again for their gradient instead of keeping what they computed."""

    def take(self, rows: Sequence[int]) -> "UpperLayers":
        """Return the layers above for some rows, those that begin alike laid into one."""
        width = self.states.shape[1]
        shared = SharedRows.of(rows, self.prefixes, width)
        index = torch.tensor(list(rows), device=self.states.device)
        return UpperLayers(self, index, shared.to(self.states.device))


@dataclass(frozen=True)
class UpperLayers:
    """The layers above the first edited one, for some rows. Shapes: r rows, p shared rows."""

    frozen: FrozenOutput
    rows: Tensor
    """Which, long [r]."""
    shared: SharedRows

    def final_states(self, at: Tensor, edits: Mapping[int, LayerEdit] | None = None) -> Tensor:
        """Return what the decoder gives in the end at some positions, row by row, [n, d].

        Args:
            at: True at those positions, bool [r, s].
            edits: layer, from the first edited one on -> change of its output, [p, w, d].
        """
        backbone = self.frozen.backbone
        places = self.shared.places(at)
        with attach(backbone.layers, edits or {}):
            return self._run(len(backbone.layers) - 1, places)[places]

    def states_at(self, layer: int, at: Tensor | None = None) -> Tensor:
        """Return the unedited output of a layer from the first edited one on, [r, s, d].

        Args:
            layer: which.
            at: True at the only positions that will be read, bool [r, s]; None means all.
        """
        frozen = self.frozen
        if layer == frozen.layer:
            return frozen.states[self.rows]
        with record(frozen.backbone.layers, [layer], stop=True) as outputs:
            self._run(layer, None if at is None else self.shared.places(at))
        return self.shared.unpack(outputs[layer])

    def marked(self, mask: Tensor) -> Tensor:
        """Return a mask of all rows, [b, s], where the states that edits change have it, [p, w]."""
        return self.shared.marked(mask)

    @property
    def first(self) -> Tensor:
        """Return one row of all for each shared row, long [p]."""
        return self.shared.row[:, -1]  # padding is on the left

    def _run(self, last: int, at: tuple[Tensor, Tensor] | None) -> Tensor:
        frozen, shared = self.frozen, self.shared
        if shared.saves:
            call = shared.call(frozen.call, frozen.backbone, done=True)
        else:
            count = len(frozen.states)
            call = {n: rows_of(n, value, self.rows, count) for n, value in frozen.call.items()}
        states = shared.pack(frozen.states)
        layers = frozen.backbone.layers
        with ExitStack() as stack:
            stack.enter_context(skipped(layers, frozen.layer, states))
            for index in range(frozen.layer + 1, last + 1):
                if index == last and at is not None and frozen.trims:
                    read = at[0] * states.shape[1] + at[1]
                    stack.enter_context(replaced(layers[index], trimmed(layers[index], read)))
                elif frozen.compiles:
                    stack.enter_context(replaced(layers[index], compiled))
                if frozen.recomputes and torch.is_grad_enabled():
                    stack.enter_context(replaced(layers[index], recomputed))
            output = frozen.backbone.decoder(**call)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
        return hidden


def head_of(model: Any) -> Any:
    """Return the function from what the decoder gives, [n, d], to logits, [n, v]."""
    embeddings = model.get_output_embeddings()
    text = model.config.get_text_config()
    limit = getattr(text, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = embeddings(hidden)
        return logits if limit is None else torch.tanh(logits / limit) * limit

    return head


def rows_of(name: str, value: Any, rows: Tensor, count: int) -> Any:
    """Return some rows of an argument that the decoder is called with for `count` of them."""
    if name in ("visual_pos_masks", "deepstack_visual_embeds", "past_key_values"):
        return None  # they concern the layers that are done
    if isinstance(value, dict):
        return {key: rows_of(key, item, rows, count) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    dim = 1 if name == "position_ids" and value.dim() == 3 else 0
    return value.index_select(dim, rows) if value.shape[dim] == count else value
