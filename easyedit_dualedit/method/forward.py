"""One forward of a model with edits applied: its layout, then its routing, then its changes.

Everything that one forward decides lives in an object made for that forward, so two edited models
on one base model, or two threads, do not see each other.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from easyedit_dualedit.errors import ChunkedPrefillError, PromptEndError
from easyedit_dualedit.method.applied import AppliedEdits
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.method.router import OpenRows
from easyedit_dualedit.model.hooks import Hooks
from easyedit_dualedit.model.inputs import (
    TokenLayout,
    cached_tokens,
    named_arguments,
    token_ids,
    widened,
)

LayoutFinder = Callable[[dict[str, Any]], TokenLayout]
"""Says what each position of a call with these inputs is."""


class Forward:
    """What the forwards inside one call, or one `generate`, know; hooks layers while they run.

    A block of it begins with the call and ends with it. Layers have hooks only where something may
    change: a decode step has none, and before the gate opens only the layer that it reads has one.
    """

    def __init__(
        self,
        edits: AppliedEdits,
        find_layout: LayoutFinder,
        prompt: Mapping[str, Any] | None = None,
    ):
        """Know nothing yet.

        Args:
            edits: what to apply.
            find_layout: asked for the layout of every forward that starts from a prompt.
            prompt: what `generate` was given; None in a plain call.
        """
        self._edits = edits
        self._find_layout = find_layout
        self._prompt = prompt
        self._hooks = Hooks()
        self._calls = Hooks()
        self._decoder_calls = Hooks()
        self._open: OpenRows | None = None
        """None until the gate has decided."""
        self._is_routing = False
        self._has_begun = False

    def __enter__(self) -> Self:
        """Return this."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Remove the hooks."""
        for hooks in (self._hooks, self._calls, self._decoder_calls):
            hooks.remove()

    def listen(self) -> None:
        """Begin with each call of the base model in this block, or of the decoder alone."""
        backbone = self._edits.backbone
        self._calls.before(backbone.model, self.begin)
        if backbone.decoder is not backbone.model:
            self._decoder_calls.before(backbone.decoder, self._begin_decoder)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call of the base model: a prompt, or a step that continues one."""
        if self._is_routing:
            return
        self._decoder_calls.remove()  # it is this call that calls the decoder
        inputs = named_arguments(self._edits.backbone.model, args) | kwargs if args else kwargs
        if self._continues(inputs):
            return
        layout = self._find_layout(inputs)
        self._start(layout, self._routed(inputs, layout) if self._edits.routes_first else None)

    def _begin_decoder(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take note of a call of the decoder without one of the base model.

        BLIP-2 generates with its language model alone: the token ids of the prompt never reach
        the base model, and rows may be repeated by then, as beam search does.
        """
        if self._is_routing or self._prompt is None:
            return
        inputs = named_arguments(self._edits.backbone.decoder, args) | kwargs if args else kwargs
        if self._continues(inputs):
            return
        tensors = {name: v for name, v in self._prompt.items() if isinstance(v, Tensor)}
        rows, width = _shape(inputs)
        # Without a cache, generated tokens follow the prompt.
        ids = widened(token_ids(tensors), width, 0)
        mask = tensors.get("attention_mask")
        mask = torch.ones_like(token_ids(tensors)) if mask is None else mask
        seen = {**tensors, "input_ids": ids, "attention_mask": widened(mask, width, 1)}
        layout = self._find_layout(seen)
        repeats = rows // len(ids)
        routing = self._routed(tensors, layout) if self._edits.routes_first else None
        if routing is not None:
            parts = (routing.similarity, routing.edit_index)
            routing = Routing(*(part.repeat_interleave(repeats) for part in parts))
        self._start(layout.repeated(repeats), routing)

    def _start(self, layout: TokenLayout, routing: Routing | None) -> None:
        """Hook the layers of a forward that starts from a prompt."""
        if routing is None:
            self._attach((self._edits.gate_layer,), layout)
            return
        self._open = OpenRows.of(routing)
        if self._open.rows:
            self._attach(self._edits.modalities_of, layout)

    def _attach(self, layers: Iterable[int], layout: TokenLayout) -> None:
        for layer in layers:
            module = self._edits.backbone.layers[layer]
            self._hooks.change(module, partial(self._edit, layer, layout))

    def _edit(self, layer: int, layout: TokenLayout, hidden: Tensor) -> Tensor | None:
        """Return the changed output of a layer, or None where nothing changes."""
        edits, concerned = self._edits, self._open
        if concerned is None:
            concerned = self._open = edits.open_rows(hidden, layout)
            if concerned.rows:
                self._attach([each for each in edits.modalities_of if each != layer], layout)
        return edits.changed(layer, hidden, layout, concerned) if concerned.rows else None

    def _routed(self, inputs: Mapping[str, Any], layout: TokenLayout) -> Routing:
        self._is_routing = True
        try:
            return self._edits.route_before(inputs, layout)
        finally:
            self._is_routing = False

    def _continues(self, inputs: Mapping[str, Any]) -> bool:
        is_first, self._has_begun = not self._has_begun, True
        self._hooks.remove()
        self._open = None
        if not cached_tokens(inputs):
            return False
        if is_first and self._prompt is not None:
            raise ChunkedPrefillError(
                "generate was given past_key_values of an earlier forward; an edit needs the whole"
                " prompt at once: leave past_key_values out"
            )
        return True


def _shape(inputs: Mapping[str, Any]) -> tuple[int, int]:
    for name in ("inputs_embeds", "input_ids"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0]), int(value.shape[1])
    raise PromptEndError("a forward of generate has neither token ids nor embeddings")
