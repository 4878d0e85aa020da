"""What the frozen layers gave for some rows, and the layers above run on it, edited or not.

The model's own decoder runs them, so that masks, positions and the final norm are the model's. A
`RowGroup` holds the rows of a training step that share a forward; the rows of its requests make the
edits (`projected_requests`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from easyedit_dualedit.method.adapter import ProjectedEdit, first_positions
from easyedit_dualedit.method.config import Modality
from easyedit_dualedit.method.editor import DualEditor
from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.compiled import ModuleForward, compiled
from easyedit_dualedit.model.hooks import LayerEdit, attach, record, replaced
from easyedit_dualedit.model.inputs import CACHE_NAMES, IGNORED, Batch, Query
from easyedit_dualedit.train.shared_rows import CommonPrefixes, SharedRows, is_causal

_BY_POSITION = ("mlp", "q_proj", "o_proj", "out_proj", "fc1", "fc2")
"""Parts of a decoder layer that treat every position alone, and that no other position reads."""

_READ_BY_OTHERS = ("k_proj", "v_proj")
"""Those that others read."""


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

    def final_states(
        self, at: Tensor, edits: Mapping[int, LayerEdit] | None = None, still: int = 0
    ) -> Tensor:
        """Return what the decoder gives in the end at some positions, row by row, [n, d].

        Args:
            at: True at those positions, bool [r, s].
            edits: layer, from the first edited one on -> change of its output, [p, w, d].
            still: how many slots at the beginning the first of the edits changes in no row.
        """
        frozen, places = self.frozen, self.shared.places(at)
        layers = frozen.backbone.layers
        last = len(layers) - 1
        with ExitStack() as stack:
            if still and torch.is_grad_enabled() and is_causal(frozen.call) and not frozen.compiles:
                # What stands before a change is not reached by it, so no gradient is wanted there.
                first, until = [*sorted(edits or ()), last, last][:2]
                for layer in layers[first + 1 : min(until + 1, last)]:
                    stack.enter_context(replaced(layer, halted(layer, still)))
            stack.enter_context(attach(layers, edits or {}))
            return self._run(last, places)[places]

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


@contextmanager
def skipped(layers: Sequence[nn.Module], last: int, states: Tensor) -> Iterator[None]:
    """Let layers up to `last` cost nothing inside the block; `last` gives `states`."""

    def giving(result: Tensor | None) -> Callable[[ModuleForward], ModuleForward]:
        def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
            return hidden_states if result is None else result

        return lambda _real: forward

    with ExitStack() as stack:
        for index in range(last + 1):
            given = giving(states if index == last else None)
            stack.enter_context(replaced(layers[index], given))
        yield


def trimmed(layer: nn.Module, index: Tensor) -> Callable[[ModuleForward], ModuleForward]:
    """Return what makes a layer's forward one that is right at some positions alone, and cheaper.

    Attention still reads every position. Nothing above the layer may mix positions.

    Args:
        layer: a decoder layer.
        index: the positions, flat over rows and slots, long [n].
    """

    def at_index(real: ModuleForward) -> ModuleForward:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            flat = states.flatten(0, -2)
            here = index.to(flat.device)  # a model may be spread over devices
            part = real(flat[None, here], *args, **kwargs)
            if not isinstance(part, Tensor):
                return real(states, *args, **kwargs)
            whole = part.new_zeros(len(flat), part.shape[-1]).index_copy(0, here, part[0])
            return whole.view(*states.shape[:-1], -1)

        return forward

    return _with_parts(layer, _BY_POSITION, at_index)


def halted(layer: nn.Module, slots: int) -> Callable[[ModuleForward], ModuleForward]:
    """Return what makes a layer's forward one that keeps nothing for a gradient of some slots.

    Args:
        layer: a decoder layer.
        slots: how many, from the first on, depend on nothing that a gradient is wanted of.
    """

    def behind(real: ModuleForward) -> ModuleForward:
        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if states.dim() != 3:  # rows and slots laid together
                return real(states, *args, **kwargs)
            with torch.no_grad():
                before = real(states.detach()[:, :slots].contiguous(), *args, **kwargs)
            if not isinstance(before, Tensor):
                return real(states, *args, **kwargs)
            return torch.cat([before, real(states[:, slots:].contiguous(), *args, **kwargs)], 1)

        return forward

    return _with_parts(layer, (*_BY_POSITION, *_READ_BY_OTHERS), behind)


def _with_parts(
    layer: nn.Module, names: Sequence[str], wrap: Callable[[ModuleForward], ModuleForward]
) -> Callable[[ModuleForward], ModuleForward]:
    def wrapped(real: ModuleForward) -> ModuleForward:
        # Inside the call, so that it holds too when the layer runs again for its gradient.
        def forward(*args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                for part in _named(layer, names):
                    stack.enter_context(replaced(part, wrap))
                return real(*args, **kwargs)

        return forward

    return wrapped


def _named(module: nn.Module, names: Sequence[str]) -> Iterator[nn.Module]:
    for name, part in module.named_children():
        if name in names:
            yield part
        else:
            yield from _named(part, names)


def recomputed(real: ModuleForward) -> ModuleForward:
    """Return a forward that keeps only its inputs for the gradient, and runs again for the rest."""
    return lambda *args, **kwargs: checkpoint(real, *args, use_reentrant=False, **kwargs)


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
    if name in ("visual_pos_masks", "deepstack_visual_embeds", *CACHE_NAMES):
        return None  # they concern the layers that are done
    if isinstance(value, dict):
        return {key: rows_of(key, item, rows, count) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    dim = 1 if name == "position_ids" and value.dim() == 3 else 0
    return value.index_select(dim, rows) if value.shape[dim] == count else value


@dataclass(frozen=True)
class RowGroup:
    """Rows of one forward: those with pictures, or those without."""

    frozen: FrozenOutput
    metric: Tensor
    """Index in METRICS of each row, long [b]."""
    record: Tensor
    """Index of the record of each row, long [b]."""
    queries: Sequence[Query]
    ends: Sequence[bool]
    metrics: Sequence[str]
    """Metric of each row."""

    def rows(self, metrics: Sequence[str]) -> list[int]:
        """Return the rows of some metrics."""
        return [row for row, metric in enumerate(self.metrics) if metric in metrics]


class Row(NamedTuple):
    """One query of a record."""

    metric: str
    record: int
    query: Query


def answers(group: RowGroup, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where rows predict answer tokens, [r, s], and of each such place token and metric."""
    following = group.frozen.batch.labels[rows, 1:]
    answer = following != IGNORED
    metric = group.metric[rows, None].expand_as(answer)[answer]
    return functional.pad(answer, (0, 1)), following[answer], metric


def projected_requests(
    editor: DualEditor, groups: Sequence[RowGroup]
) -> dict[Modality, ProjectedEdit]:
    """Return the edits of the requests of some records, projected, in the records' order."""
    adapters = editor.adapters
    end = editor.encoder.tokenizer.eos_token_id
    layers = {adapters.layer_of[name] for name in adapters.modalities}
    records: list[Tensor] = []
    signals: dict[int, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    words: list[Tensor] = []
    with torch.no_grad():
        for group in groups:
            chosen = group.rows(["reliability"])
            if not chosen:
                continue
            upper = group.frozen.take(chosen)
            batch = group.frozen.batch.select(upper.rows)
            # An end-of-turn token is asked for, but carries no edit.
            ended = (batch.labels != IGNORED) & ~batch.target
            layout = replace(batch.layout, real=batch.layout.real & ~ended)
            batch = replace(batch, layout=layout)
            carrying = adapters.carrying(batch)
            records.append(group.record[upper.rows])
            words.append(packed(batch.following_words(end)[..., None], carrying)[0])
            for layer, signal in signals.items():
                signal.append(packed(upper.states_at(layer, carrying), carrying))
    order = torch.cat(records).argsort()
    projected = {}
    width = max(each.shape[1] for each in words)
    ids = torch.cat([_widened(each, width) for each in words])[order]
    vectors = adapters.word_vectors(ids[..., 0])
    for name in adapters.modalities:
        signal = signals[adapters.layer_of[name]]
        states = torch.cat([_widened(each, width) for each, _ in signal])[order]
        masks = [_widened(each[..., None], width)[..., 0] for _, each in signal]
        mask = torch.cat(masks)[order]
        projected[name] = adapters[name].project(states, mask, vectors)
    return projected


def packed(states: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states at some positions of each row, [b, e, d], and their mask, bool [b, e].

    The mask is True at real positions; the others, at the end of rows with fewer, are zeros.

    Args:
        states: [b, s, d].
        at: True at the positions, bool [b, s].
    """
    columns, mask = first_positions(at.to(states.device))
    chosen = states.gather(1, columns[..., None].expand(*columns.shape, states.shape[-1]))
    return chosen.masked_fill(~mask[..., None], 0.0), mask


def _widened(values: Tensor, width: int) -> Tensor:
    """Return values [b, e, d] with zeros, or False, up to a width, [b, width, d]."""
    return functional.pad(values, (0, 0, 0, width - values.shape[1]))
