"""One call of an edited model: asks the gate once for each prompt, and changes the layers.

Everything that one forward decides lives here, and hooks are there only while a forward runs. A
step that continues a prompt goes by the decision that its prompt got.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from easyedit_dualedit.errors import ChunkedPrefillError
from easyedit_dualedit.method.active_edits import ActiveEdits
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.calls import (
    cached_tokens,
    named_arguments,
    real_tokens,
    rows_and_width,
    token_ids,
    widened,
)
from easyedit_dualedit.model.hooks import Hooks, eager
from easyedit_dualedit.model.inputs import TokenLayout

LayoutFinder = Callable[[dict[str, Any]], TokenLayout]
"""Says what each position of a call with these inputs is."""


@dataclass(frozen=True)
class Decision:
    """Which edit concerns each row of a prompt."""

    open_rows: Mapping[int, int]
    """Row that an edit concerns -> the edit."""
    answered: Tensor
    """Answer tokens that were read with the prompt, of each row, long [b]."""
    cached: int
    """Tokens that the cache held after it."""

    def repeated(self, rows: int) -> Mapping[int, int]:
        """Return the open rows where rows were repeated in place, as many as given in all."""
        times = max(1, rows // len(self.answered))
        return {
            row * times + place: edit
            for row, edit in self.open_rows.items()
            for place in range(times)
        }

    def continued(self, rows: int, width: int, cached: int) -> TokenLayout:
        """Return what the positions of a step are.

        Args:
            rows: of the step.
            width: tokens of each.
            cached: tokens that the cache holds before it.
        """
        times = max(1, rows // len(self.answered))
        before = self.answered.repeat_interleave(times) + (cached - self.cached)
        return TokenLayout.of_answer(before, width)


Decisions = MutableMapping[Any, Decision]
"""What was decided for the prompt whose keys and values a cache holds."""


class EditedCall:
    """Runs forwards edited: a plain call of a model, or those that one `generate` makes.

    Layers have hooks only where something may change: before the gate opens only the layer that it
    reads has one, a step that continues a prompt has one only if the gate opened for the prompt.
    """

    def __init__(
        self,
        backbone: Backbone,
        active: ActiveEdits,
        find_layout: LayoutFinder,
        decisions: Decisions,
        prompt: Mapping[str, Any] | None = None,
    ):
        """Know nothing yet.

        Args:
            backbone: parts of the base model.
            active: the edits.
            find_layout: asked for the layout of every forward that starts from a prompt.
            decisions: of the calls before, by the caches that they gave.
            prompt: what `generate` was given; None in a plain call.
        """
        self._backbone = backbone
        self._active = active
        self._find_layout = find_layout
        self._decisions = decisions
        self._prompt = prompt
        self._hooks = Hooks()
        self._answered: Tensor | None = None
        """Answer tokens of each row of a prompt, long [b]; None in a step that continues one."""
        self._open_rows: Mapping[int, int] | None = None
        """Row that an edit concerns -> the edit; None until the gate has decided."""
        self.has_begun = False
        """Whether a forward has run."""

    def run(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return the output of one forward, edited.

        Args:
            module: the base model, or the part of it that generates.
            forward: what to call where nothing may change: the module, or its compiled code.
            args: positional arguments of the module.
            kwargs: its keyword arguments.
        """
        with self._hooks:
            self._begin(module, args, kwargs)
            if not self._hooks:
                output = forward(*args, **kwargs)
            else:
                with eager(self._backbone.path, self._backbone.layers):
                    output = module(*args, **kwargs)
        if self._answered is not None and self._open_rows:
            cache = getattr(output, "past_key_values", None)
            # EasyEdit's ports give a tuple, new at each step, which nothing can be remembered by.
            if cache is not None and not isinstance(cache, tuple):
                held = cached_tokens({"past_key_values": cache})
                self._decisions[cache] = Decision(self._open_rows, self._answered, held)
        return output

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook the layers that a prompt needs, or a step that continues one."""
        is_first, self.has_begun = not self.has_begun, True
        inputs = named_arguments(module, args) | kwargs if args else kwargs
        if cached_tokens(inputs):
            if is_first and self._prompt is not None:
                raise ChunkedPrefillError(
                    "generate was given past_key_values of an earlier forward; an edit needs the"
                    " whole prompt at once: leave past_key_values out"
                )
            self._continue(inputs)
        elif module is self._backbone.model:
            layout = self._find_layout(inputs)
            self._start(layout, self._routed(inputs, layout))
        else:
            self._begin_part(inputs, self._prompt or {})

    def _begin_part(self, inputs: Mapping[str, Any], prompt: Mapping[str, Any]) -> None:
        """Hook the layers of a part of the base model that generates by itself.

        BLIP-2 generates with its language model alone: the token ids of the prompt never reach
        the base model, and rows may be repeated by then, as beam search does.
        """
        tensors = {name: v for name, v in prompt.items() if isinstance(v, Tensor)}
        rows, width = rows_and_width(inputs)
        # Without a cache, generated tokens follow the prompt.
        ids = widened(token_ids(tensors), width, 0)
        mask = real_tokens(tensors)
        seen = {**tensors, "input_ids": ids, "attention_mask": widened(mask, width, 1)}
        layout = self._find_layout(seen)
        repeats = rows // len(ids)
        routing = self._routed(tensors, layout)
        if routing is not None:
            parts = (routing.similarity, routing.edit_index)
            routing = Routing(*(part.repeat_interleave(repeats) for part in parts))
        self._start(layout.repeated(repeats), routing)

    def _continue(self, inputs: Mapping[str, Any]) -> None:
        """Hook the text layer of a step behind a prompt that an edit concerns."""
        adapters = self._active.adapters
        cache = inputs["past_key_values"]
        if isinstance(cache, tuple):
            raise ChunkedPrefillError(
                "past_key_values is a tuple, by which an edit does not know its prompt again; call"
                " generate, or give a cache of transformers, such as DynamicCache"
            )
        decision = self._decisions.get(cache)
        self._open_rows = self._answered = None
        if decision is None or not adapters.changes_answers:
            return
        rows, width = rows_and_width(inputs)
        self._open_rows = decision.repeated(rows)
        layout = decision.continued(rows, width, cached_tokens(inputs))
        self._attach((adapters.layer_of["text"],), layout)

    def _start(self, layout: TokenLayout, routing: Routing | None) -> None:
        """Hook the layers of a forward that starts from a prompt."""
        self._open_rows, self._answered = None, layout.answered.amax(1)
        if routing is None:
            self._attach((self._active.gate_layer,), layout)
            return
        self._open_rows = routing.open_rows()
        if self._open_rows:
            self._attach(self._active.layers, layout)

    def _attach(self, layers: Iterable[int], layout: TokenLayout) -> None:
        for layer in layers:
            module = self._backbone.layers[layer]
            self._hooks.change(module, partial(self._edit, layer, layout))

    def _edit(self, layer: int, layout: TokenLayout, hidden: Tensor) -> Tensor | None:
        """Return the changed output of a layer, or None where nothing changes."""
        if self._open_rows is None:
            self._open_rows = self._active.decide(hidden, layout).open_rows()
            if self._open_rows:
                self._attach([each for each in self._active.layers if each != layer], layout)
        if not self._open_rows or layer not in self._active.layers:
            return None
        return self._active.changed(layer, hidden, layout, self._open_rows)

    def _routed(self, inputs: Mapping[str, Any], layout: TokenLayout) -> Routing | None:
        """Return the decision if it has to be made before this forward, else None."""
        if not self._active.changes_before_gate:
            return None
        return self._active.decide_ahead(self._backbone, inputs, layout)
