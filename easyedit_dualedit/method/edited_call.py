"""One call of an edited model: asks the gate once for each prompt, and changes the layers.

Everything that one forward decides lives here, and hooks are there only while a forward runs. A
step that continues a prompt goes by the decision that its prompt got. Below stands what the
arguments of a call say: which tokens are real, where the prompt ends, what a cache holds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from easyedit_dualedit.errors import ChunkedPrefillError, DataError, PromptEndError
from easyedit_dualedit.method.active_edits import ActiveEdits, Decision, DecisionMark, Decisions
from easyedit_dualedit.method.gate import Routing
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import Hooks, eager, named_arguments
from easyedit_dualedit.model.inputs import CACHE_NAMES, IGNORED, TokenLayout

_MARK = "_dualedit_decision"
"""Attribute of a cache that was filled with a prompt that an edit concerns."""

LayoutFinder = Callable[[dict[str, Any]], TokenLayout]
"""Says what each position of a call with these inputs is."""


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
            decisions: of the calls before, by the marks of the caches that they gave.
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
        self._given: Any = None
        """The cache among the inputs of the last forward."""
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
            cache = cache_in(output) or self._given
            # EasyEdit's ports give a tuple, new at each step, which nothing can be remembered by.
            if cache is not None and not isinstance(cache, tuple):
                mark, held = DecisionMark(), cached_tokens(cache)
                setattr(cache, _MARK, mark)
                self._decisions[mark] = Decision(self._open_rows, self._answered, held)
        return output

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Hook the layers that a prompt needs, or a step that continues one."""
        is_first, self.has_begun = not self.has_begun, True
        inputs = named_arguments(module, args) | kwargs
        self._given = cache_of(inputs)
        if cached_tokens(self._given):
            if is_first and self._prompt is not None:
                raise ChunkedPrefillError(
                    "generate was given the cache (past_key_values) of an earlier forward; an edit"
                    " needs the whole prompt at once: leave it out"
                )
            self._continue(inputs)
            return
        if self._given is not None:
            # One that was emptied holds nothing of the prompt for which it was decided before.
            getattr(self._given, "__dict__", {}).pop(_MARK, None)
        if module is self._backbone.model:
            layout = self._find_layout(inputs)
            self._start(layout, self._routed(inputs, layout))
        else:
            self._begin_part(inputs, self._prompt or {})

    def _begin_part(self, inputs: Mapping[str, Any], prompt: Mapping[str, Any]) -> None:
        """Hook the layers of a part of the base model that generates by itself.

        BLIP-2 generates with its language model alone: the token ids of the prompt never reach
        the base model, and rows may be repeated by then, as beam search does.
        """
        seeing = ("interpolate_pos_encoding",)
        tensors = {n: v for n, v in prompt.items() if isinstance(v, Tensor) or n in seeing}
        rows, width = rows_and_width(inputs)
        # Without a cache, generated tokens follow the prompt.
        ids = _widened(token_ids(tensors), width, 0)
        mask = real_tokens(tensors)
        seen = {**tensors, "input_ids": ids, "attention_mask": _widened(mask, width, 1)}
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
        cache = cache_of(inputs)
        if isinstance(cache, tuple):
            raise ChunkedPrefillError(
                "the cache (past_key_values) is a tuple, by which an edit does not know its prompt"
                " again; call generate, or give a cache of transformers, such as DynamicCache"
            )
        mark = getattr(cache, _MARK, None)
        self._open_rows = self._answered = None
        if mark is None or not adapters.changes_answers:
            return
        decision = self._decisions.get(mark)
        if decision is None:
            raise ChunkedPrefillError("the cache is of another edited model: go on with that one")
        rows, width = rows_and_width(inputs)
        held = cached_tokens(cache)
        if held < decision.prompt_tokens or rows % len(decision.answered):
            raise ChunkedPrefillError(
                f"the cache (past_key_values) has {held} tokens, and the step {rows} rows, but an"
                f" edit concerns a prompt of {decision.prompt_tokens} tokens that filled it with"
                f" {len(decision.answered)} rows: tokens of the prompt, or rows, were taken out of"
                " it; give the whole prompt anew"
            )
        self._open_rows = decision.repeated(rows)
        layout = decision.continued(rows, width, held)
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


def layout_of_call(
    inputs: dict[str, Any], encoder: Encoder, given: TokenLayout | None
) -> TokenLayout:
    """Return what each position of a plain call is.

    Args:
        inputs: of the call.
        encoder: of the model.
        given: by whoever calls; None to find the end of a prompt where `labels` begin, or else
            at the chat template's generation prompt.

    Raises:
        PromptEndError: if the end of a prompt cannot be found.
    """
    if given is not None:
        # Whoever made it may count the last prompt token, which this editor leaves out.
        return given if encoder.last_prompt_token else given.without_prompt_end()
    ids, mask = token_ids(inputs), real_tokens(inputs)
    labels = inputs.get("labels")
    gate = None
    if isinstance(labels, Tensor) and labels.shape == ids.shape:
        answer = labels != IGNORED
        first = answer.to(torch.uint8).argmax(1)
        said = mask.bool() & ~encoder.vision_positions(ids)
        special = torch.tensor(encoder.tokenizer.all_special_ids, device=ids.device)
        start = (said & ~torch.isin(ids, special)).to(torch.uint8).argmax(1)
        # Labels that cover the prompt as well say nothing of where it ends, also where they leave
        # out its image tokens and special ones.
        if bool(answer.any(1).all()) and bool((first > start).all()):
            gate = first - 1
    return encoder.layout(ids, mask, gate=gate)


def layout_of_prefill(
    inputs: dict[str, Any], encoder: Encoder, columns: int, prompt: Tensor
) -> TokenLayout:
    """Return what each position of the first forward of `generate` is.

    Args:
        inputs: of the forward.
        encoder: of the model.
        columns: tokens of the prompt, padding included.
        prompt: mask that `generate` was given, [p, q].

    Raises:
        ChunkedPrefillError: if the forward has not the whole prompt.
    """
    ids, mask = token_ids(inputs), real_tokens(inputs, prompt)
    if ids.shape[1] < columns:
        raise ChunkedPrefillError(
            f"generate processed {ids.shape[1]} of {columns} prompt tokens in one forward; an"
            " edit needs the whole prompt at once: unset prefill_chunk_size and guidance_scale,"
            " and pass no cache (past_key_values)"
        )
    # Without a cache, and in assisted generation, tokens follow the prompt in one forward.
    positions = torch.arange(columns, device=ids.device)
    end = torch.where(mask[:, :columns].bool(), positions, -1).amax(1)
    gate, marker, given = end, encoder.marker, ids[:, :columns]
    if marker and any(tuple(row) != marker.ids for row in given[:, -len(marker.ids) :].tolist()):
        special = torch.tensor(encoder.tokenizer.all_special_ids, device=ids.device)
        begun = marker.before_begun_answer(given, mask[:, :columns], special)
        gate = torch.where(begun >= 0, begun, end)
    return dataclasses.replace(encoder.layout(ids, mask, gate=gate), last=end)


def token_ids(inputs: Mapping[str, Any]) -> Tensor:
    """Return the token ids among a model's inputs.

    Raises:
        PromptEndError: if there are none.
    """
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor):
        raise PromptEndError(
            "an edited model needs input_ids, to tell image tokens from text; pass them, not"
            " inputs_embeds"
        )
    return ids


def real_tokens(inputs: Mapping[str, Any], prompt: Tensor | None = None) -> Tensor:
    """Return the mask of the real tokens among a model's inputs, [b, s]; all are if there is none.

    Args:
        inputs: of the model.
        prompt: mask that `generate` was given, [p, q], where rows may be repeated by now. With a
            static cache `generate` of transformers 5.5 puts one of four dimensions in its place.

    Raises:
        PromptEndError: if there are no token ids.
        DataError: if the mask says who attends to whom, and not which tokens are real.
    """
    ids, mask = token_ids(inputs), inputs.get("attention_mask")
    if mask is None:
        return torch.ones_like(ids)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask
    if prompt is not None and prompt.dim() == 2:
        rows, width = ids.shape
        return _widened(prompt, width, 1).repeat_interleave(rows // len(prompt), 0)
    raise DataError(
        "attention_mask says who attends to whom; an edited model needs to know which tokens are"
        " real: give one of two dimensions, 1 at real tokens and 0 at padding"
    )


def cache_of(inputs: Mapping[str, Any]) -> Any:
    """Return the cache among a model's inputs, or in its output; None without one."""
    held = dict(inputs)  # an output of transformers warns when it is asked for a name of before
    return next((held[name] for name in CACHE_NAMES if held.get(name) is not None), None)


def cache_in(output: Any) -> Any:
    """Return the cache in a model's output, a tuple or not; None without one."""
    if isinstance(output, Mapping):
        return cache_of(output)
    parts = output if isinstance(output, tuple) else ()
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def cached_tokens(cache: Any) -> int:
    """Return how many tokens a cache holds; 0 if there is none."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])


def rows_and_width(inputs: Mapping[str, Any]) -> tuple[int, int]:
    """Return the shape of a call's rows: their number, and their positions.

    Raises:
        PromptEndError: if there are neither token ids nor embeddings.
    """
    for name in ("inputs_embeds", "input_ids"):
        value = inputs.get(name)
        if isinstance(value, Tensor):
            return int(value.shape[0]), int(value.shape[1])
    raise PromptEndError("a forward of generate has neither token ids nor embeddings")


def _widened(rows: Tensor, width: int, filler: int) -> Tensor:
    """Return rows [b, s] cut to a width, or filled up to it at their ends, [b, width]."""
    filled = rows.new_full((len(rows), max(0, width - rows.shape[1])), filler)
    return torch.cat([rows[:, :width], filled], 1)
