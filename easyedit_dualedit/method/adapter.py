"""The adapters: cross-attention from a query's states to the states that carry an edit."""

from collections.abc import Sequence
from dataclasses import dataclass

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
        if len(self.keys) == len(rows) == 1:
            return self
        return ProjectedEdit(self.keys[rows], self.values[rows], self.mask[rows], self.is_full)


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
        with self._own_precision():
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
        with self._own_precision():
            queries = self._split(self.query(self.query_norm(hidden.to(self.query.weight))))
            mask = None if edit.is_full else edit.mask[:, None, None, :]
            attended = functional.scaled_dot_product_attention(
                queries, edit.keys, edit.values, attn_mask=mask
            )
            delta: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return delta.to(hidden)

    def _own_precision(self) -> torch.autocast:
        # An edit may be projected under autocast and used without it, or the other way round.
        return torch.autocast(self.query.weight.device.type, enabled=False)

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
    if len(hidden) == len(rows) == 1:  # the common case, in a third of the operations
        columns = positions[0].nonzero()[:, 0]
        if len(columns) == 0:
            return hidden
        states = hidden.index_select(1, columns)
        return hidden.index_add(1, columns, adapter(states.to(edit.device), edit).to(hidden))
    chosen_rows = torch.tensor(rows, dtype=torch.long, device=hidden.device)
    columns, is_chosen = first_positions(positions[chosen_rows])  # [r, m]
    if columns.numel() == 0:
        return hidden
    places = (chosen_rows[:, None], columns)
    states = hidden[places]  # [r, m, d]
    delta = adapter(states.to(edit.device), edit).to(hidden)
    changed = torch.where(is_chosen[..., None], states + delta, states)
    return hidden.index_put(places, changed)


def first_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions at which each row is True, in order: columns of a compact tensor.

    Args:
        mask: bool [b, s].

    Returns:
        Positions, long [b, m] with m the largest number of any row, no position twice; and True
        where a row has so many, bool [b, m].
    """
    counts = mask.sum(1, keepdim=True)
    most = int(counts.max()) if len(mask) else 0
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order[:, :most], torch.arange(most, device=mask.device) < counts


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
