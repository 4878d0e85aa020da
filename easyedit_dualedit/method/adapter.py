"""The adapters: cross-attention from a query's states to the states that carry an edit."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.method.config import DualEditConfig, Modality


@dataclass(frozen=True)
class ProjectedEdit:
    """What an adapter needs of one or more edits: their keys and values.

    Shapes: n edits, h heads, e edit length, k width of a head.
    """

    keys: Tensor
    """[n, h, e, k]."""
    values: Tensor
    """[n, h, e, k]."""
    mask: Tensor
    """True at real edit positions, bool [n, e]."""
    is_full: bool = False
    """True if every position is known to be real, so that attention needs no mask."""

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.keys.device

    def select(self, rows: Tensor) -> "ProjectedEdit":
        """Return the edits with the given indices, long [b]."""
        if len(self.keys) == 1:  # every row has the only one there is
            return self if len(rows) == 1 else self._repeated(len(rows))
        return ProjectedEdit(self.keys[rows], self.values[rows], self.mask[rows], self.is_full)

    def _repeated(self, rows: int) -> "ProjectedEdit":
        keys, values, mask = (
            each.expand(rows, *each.shape[1:]) for each in (self.keys, self.values, self.mask)
        )
        return ProjectedEdit(keys, values, mask, self.is_full)


@dataclass(frozen=True)
class FoldedEdit:
    """One edit and the adapter's own matrices in one: attention in two products.

    With the queries' matrix multiplied into the keys and the output's into the values, a state
    takes heads times edit length products of its own size, not twice the adapter's width. At
    LLaVA-1.5-7B size and five tokens that is 40 instead of 1024.

    Shapes: h heads, e edit length, d hidden size.
    """

    scores: Tensor
    """What normalised states are multiplied with, [h * e, d]."""
    bias: Tensor
    """Added to the scores, [h * e, 1]."""
    outputs: Tensor
    """What a head of a state adds to it that attends to one token alone, [h * e, d]."""
    heads: int
    epsilon: float
    """Of the norm of the states."""

    def add_to(self, states: Tensor) -> None:
        """Add to each of some states, [n, d], its change, computed in the adapter's precision."""
        if torch.is_autocast_enabled(self.device.type):
            with torch.autocast(self.device.type, enabled=False):
                self._add_to(states)
        else:  # even a block that does nothing takes as long as a product
            self._add_to(states)

    def _add_to(self, states: Tensor) -> None:
        own, count = self.scores, states.shape[0]
        is_alike = states.dtype == own.dtype and states.device == self.device
        exact = states if is_alike else states.to(own)
        normed = torch.layer_norm(exact, exact.shape[1:], eps=self.epsilon)
        # By columns: a softmax over a few rows is many times quicker than over a few columns.
        scores = torch.addmm(self.bias, own, normed.t())
        shares = torch.softmax(scores.view(self.heads, -1, count), 1).view(-1, count).t()
        if is_alike:
            states.addmm_(shares, self.outputs)
        else:
            states += torch.mm(shares, self.outputs).to(states)

    @cached_property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.scores.device


class CrossAttentionAdapter(nn.Module):
    """Computes the change that an edit makes to hidden states (paper section 4).

    `delta = W_o softmax(Q K^T / sqrt(k)) V` with `Q = W_q LN_x(h)`, `K = W_k LN_e(E)` and
    `V = W_v LN_e(E)`.

    Differs from the published code: `W_o` starts at zero, so that an untrained adapter changes
    nothing, and one linear map makes the queries instead of two in a row.
    """

    def __init__(self, hidden_size: int, width: int, heads: int):
        """Build an adapter for states of `hidden_size` with `heads` heads of `width / heads`."""
        super().__init__()
        self.heads = heads
        self.width = width
        self.query_norm = nn.LayerNorm(hidden_size)
        self.edit_norm = nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, width)
        self.key = nn.Linear(hidden_size, width)
        self.value = nn.Linear(hidden_size, width)
        self.output = nn.Linear(width, hidden_size)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def project(self, edit: Tensor, mask: Tensor) -> ProjectedEdit:
        """Return keys and values of edits.

        Args:
            edit: states that carry the edit, [n, e, d], in any floating dtype.
            mask: True where `edit` is a real position, bool [n, e].
        """
        with _own_precision(self.query.weight):
            states = self.edit_norm(edit.to(self.query.weight))
            return ProjectedEdit(
                self._split(self.key(states)),
                self._split(self.value(states)),
                mask.to(self.query.weight.device),
            )

    def forward(self, hidden: Tensor, edit: ProjectedEdit) -> Tensor:
        """Return the change to each hidden state, [b, s, d], in the dtype of `hidden`.

        Args:
            hidden: states leaving the edited layer, [b, s, d].
            edit: the edit of each row, n = b.
        """
        with _own_precision(self.query.weight):
            queries = self._split(self.query(self.query_norm(hidden.to(self.query.weight))))
            mask = None if edit.is_full else edit.mask[:, None, None, :]
            attended = functional.scaled_dot_product_attention(
                queries, edit.keys, edit.values, attn_mask=mask
            )
            delta: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return delta.to(hidden)

    @property
    def weights_to_fold(self) -> tuple[nn.Parameter, ...]:
        """What `fold` puts into an edit."""
        parts = (self.query_norm, self.query, self.output)
        return tuple(parameter for part in parts for parameter in part.parameters())

    def pays_to_fold(self, edit: ProjectedEdit) -> bool:
        """Return whether `fold` makes an edit cheaper to apply: if it is one, and short."""
        return len(edit.keys) == 1 and self.heads * int(edit.mask.sum()) <= self.width

    @torch.no_grad()
    def fold(self, edit: ProjectedEdit) -> FoldedEdit:
        """Return one edit folded into this adapter as it is now. No gradients pass."""
        norm, query, output = self.query_norm, self.query, self.output
        real = edit.mask[0]
        with _own_precision(query.weight):
            keys = edit.keys[0][:, real] * (self.width // self.heads) ** -0.5  # [h, e, k]
            by_head = query.weight.view(self.heads, -1, len(norm.weight))  # [h, k, d]
            scores = torch.einsum("hek,hkd->hed", keys, by_head).flatten(0, 1)
            bias = torch.einsum("hek,hk->he", keys, query.bias.view(self.heads, -1))
            outputs = torch.einsum(
                "hek,dhk->hed",
                edit.values[0][:, real],
                output.weight.view(len(norm.weight), self.heads, -1),
            )
            return FoldedEdit(
                norm.weight * scores,
                torch.addmv(bias.flatten(), scores, norm.bias)[:, None],
                # The shares of a head sum to one, so each brings its part of the bias.
                (outputs + output.bias / self.heads).flatten(0, 1),
                self.heads,
                norm.eps,
            )

    def _split(self, states: Tensor) -> Tensor:
        rows, length, width = states.shape
        return states.view(rows, length, self.heads, width // self.heads).transpose(
            1, 2
        )  # [n, h, e, k]


class DualAdapters(nn.Module):
    """The adapter of each modality in use, by name: `text`, `vision`."""

    def __init__(self, hidden_size: int, config: DualEditConfig):
        """Build the adapters that `config` asks for."""
        super().__init__()
        self.by_modality = nn.ModuleDict(
            {
                modality: CrossAttentionAdapter(hidden_size, config.width, config.heads)
                for modality in config.modalities
            }
        )
        self.layer_of: dict[Modality, int] = {
            "text": config.text_layer,
            "vision": config.vision_layer,
        }

    def __getitem__(self, modality: Modality) -> CrossAttentionAdapter:
        """Return the adapter of a modality in use."""
        adapter = self.by_modality[modality]
        if not isinstance(adapter, CrossAttentionAdapter):
            raise TypeError(f"{modality} holds {type(adapter).__name__}, not an adapter")
        return adapter

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modalities in use, text first."""
        return tuple(name for name in self.layer_of if name in self.by_modality)


def _own_precision(weight: Tensor) -> AbstractContextManager[Any]:
    # An edit may be projected under autocast and used without it, or the other way round.
    if torch.is_autocast_enabled(weight.device.type):
        return torch.autocast(weight.device.type, enabled=False)
    return nullcontext()  # entering autocast takes as long as a small product


def add_at(
    hidden: Tensor,
    positions: Tensor,
    adapter: CrossAttentionAdapter,
    edit: ProjectedEdit,
    rows: Sequence[int],
) -> Tensor:
    """Return `hidden` with an adapter's change added at some positions of some rows.

    Every other element of the result is the very number that `hidden` holds.

    Args:
        hidden: states leaving a layer, [b, s, d]; not modified.
        positions: True where the adapter may act, bool [b, s].
        adapter: computes the change.
        edit: the edit of each of `rows`, n = len(rows).
        rows: indices of the rows to change.
    """
    positions = positions.to(hidden.device)
    if len(hidden) == len(rows) == 1:
        # Whole columns change: this takes half the operations, all of which a forward runs cold.
        columns = positions[0].nonzero()[:, 0]
        if not len(columns):
            return hidden
        states = hidden.index_select(1, columns)
        changed = states + adapter(states.to(edit.keys.device), edit).to(hidden)
        return hidden.index_copy(1, columns, changed)
    chosen_rows = torch.tensor(rows, dtype=torch.long, device=hidden.device)
    mask = positions[chosen_rows]  # [r, s]
    counts = mask.sum(1).tolist()
    most = max(counts, default=0)
    if most == 0:
        return hidden
    # The adapter computes only positions that some row changes.
    if min(counts) == most:
        index, chosen = mask.nonzero()[:, 1].view(len(rows), most), None
    else:  # those of each row first, in order
        index = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        chosen = mask.gather(1, index)  # [r, m]
    places = (chosen_rows[:, None], index)
    states = hidden[places]  # [r, m, d]
    changed = states + adapter(states.to(edit.keys.device), edit).to(hidden)
    if chosen is not None:
        changed = torch.where(chosen[..., None], changed, states)
    return hidden.index_put(places, changed)


def add_folded(hidden: Tensor, positions: Tensor, edit: FoldedEdit, rows: Sequence[int]) -> Tensor:
    """Return what `add_at` does, for one edit in all of some rows."""
    if hidden.shape[0] == len(rows) == 1:
        # A plain list of a single row is read at less cost than any operation on it begins.
        span = _span(positions.tolist()[0])
        if span is not None:
            changed = hidden.clone()
            edit.add_to(changed[0, span])
            return changed
    positions = positions.to(hidden.device)
    if len(rows) < hidden.shape[0]:
        concerned = torch.zeros(len(hidden), 1, dtype=torch.bool)
        concerned[list(rows)] = True
        positions = positions & concerned.to(positions.device)
    index = positions.flatten().nonzero()[:, 0]
    if not index.numel():
        return hidden
    flat = hidden.flatten(0, 1)
    states = flat.index_select(0, index)
    edit.add_to(states)
    return flat.index_copy(0, index, states).view_as(hidden)


def _span(marks: list[bool]) -> slice | None:
    """Return where marks are True, if that is in one piece, as the tokens of a picture are."""
    count = marks.count(True)
    if not count:
        return None
    first = marks.index(True)
    return slice(first, first + count) if all(marks[first : first + count]) else None
