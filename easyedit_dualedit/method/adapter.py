"""The adapters: cross-attention from a query's states to the states that carry an edit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_dualedit.method.config import DualEditConfig, Modality
from easyedit_dualedit.model.hooks import in_own_precision
from easyedit_dualedit.model.inputs import Batch, TokenLayout

_PLACES = 64
"""Answer tokens that are told apart by their place; later ones count as the last of these."""

_PACE = 100.0
"""A word is several times as strong as the state it is written into; at this pace a strength that
starts at zero is there after some dozens of optimiser steps, at the step size of all else."""


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
    words: Tensor | None = None
    """Unit vector of the answer token that follows each position, zeros where none does,
    [n, e, d]; None without a word path."""
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
        parts = (self.keys[rows], self.values[rows], self.mask[rows])
        return ProjectedEdit(*parts, None if self.words is None else self.words[rows], self.is_full)


class WordPath(nn.Module):
    """Writes the words of an edit into hidden states as the model itself would say them.

    Cross-attention alone learns to recall the answers of its training: it maps the states of a
    target to a change that makes the model say it, through a bottleneck, one word at a time. The
    direction in which a model says a token is known, it is the token's row of the output
    embeddings. So an edit has a place for each answer token, which holds the state before the token
    and the token's direction; the adapter has only to learn which place a query has reached, by its
    state and by how far its answer is, and says words that it was never taught.

    Not in the paper.
    """

    def __init__(self, hidden_size: int, width: int, heads: int):
        """Build a path that writes nothing yet."""
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.value = nn.Linear(hidden_size, width, bias=False)
        self.place = nn.Embedding(_PLACES, width)
        """Added to query and key: how many tokens of the answer stand already."""
        # An answer's n-th token finds the n-th word from the start: each place is nearest to
        # itself, by a score of 4.
        nn.init.normal_(self.place.weight, std=2.0 * (width // heads) ** -0.25)
        self.silent_key = nn.Parameter(torch.zeros(heads, width // heads))
        """Attention that goes here writes nothing."""
        self.head_weights = nn.Parameter(torch.zeros(heads))
        self.gain = nn.Parameter(torch.ones(hidden_size))
        self.strength = nn.Parameter(torch.zeros(()))

    def places(self, words: Tensor) -> Tensor:
        """Return what is added to the keys of edits, [n, e, width].

        Args:
            words: direction of the word of each place, [n, e, d]; zeros where there is none.
        """
        counted = words.any(-1).cumsum(1) - 1  # the first word is said where none stands yet
        return self.at(counted.clamp(min=0))

    def at(self, answered: Tensor | None) -> Tensor:
        """Return what is added to a query or a key, [..., width], for numbers of answer tokens."""
        weight = self.place.weight
        if answered is None:
            return weight[0]
        return functional.embedding(answered.to(weight.device).clamp(max=_PLACES - 1), weight)

    def attention(self, queries: Tensor, edit: ProjectedEdit) -> Tensor:
        """Return attention to the places of each row's edit, and to silence, [b * h, s, e + 1].

        Args:
            queries: [b, h, s, k].
            edit: the edit of each row, n = b.
        """
        # Products of three dimensions: of four, or as einsum, they take twice the operations.
        asked = queries.flatten(0, 1)
        scores = asked.bmm(edit.keys.flatten(0, 1).transpose(1, 2))
        if not edit.is_full:
            is_padding = (~edit.mask).repeat_interleave(queries.shape[1], 0)[:, None]
            scores = scores.masked_fill(is_padding, -torch.inf)
        silent = self.silent_key.expand(len(queries), -1, -1).reshape(len(asked), 1, -1)
        silence = silent.bmm(asked.transpose(1, 2)).transpose(1, 2)
        scaled: Tensor = torch.cat([scores, silence], -1) / queries.shape[-1] ** 0.5
        return scaled.softmax(-1)

    def forward(self, hidden: Tensor, attention: Tensor, words: Tensor) -> Tensor:
        """Return what is added to hidden states, [b, s, d].

        Args:
            hidden: the states, [b, s, d]; a word is as strong as they are.
            attention: of each head to the places of the edit and to silence, [b * h, s, e + 1].
            words: direction of the word of each place, [b, e, d].
        """
        weights = self.head_weights.softmax(0).expand(len(hidden), 1, -1)
        by_row = attention.view(len(hidden), len(self.head_weights), -1)
        pointing = weights.bmm(by_row).view(*hidden.shape[:2], -1)
        strength = _PACE * self.strength * hidden.norm(dim=-1, keepdim=True)
        written: Tensor = strength * self.gain * pointing[..., :-1].bmm(words)
        return written


class CrossAttentionAdapter(nn.Module):
    """Computes the change that an edit makes to hidden states (paper section 4).

    `delta = W_o softmax(Q K^T / sqrt(k)) V` with `Q = W_q LN_x(h)`, `K = W_k LN_e(E)` and
    `V = W_v LN_e(E)`.

    Differs from the published code: `W_o` starts at zero, so that an untrained adapter changes
    nothing, and one linear map makes the queries instead of two in a row. With a word path the
    edit's words are added, to `V` and to `delta` (not in the paper).
    """

    def __init__(self, hidden_size: int, width: int, heads: int, *, word_path: bool = False):
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
        self.words = WordPath(hidden_size, width, heads) if word_path else None
        if word_path:
            # Where query and edit are in the same state, they find each other from the start.
            self.key.load_state_dict(self.query.state_dict())

    def project(self, edit: Tensor, mask: Tensor, words: Tensor | None = None) -> ProjectedEdit:
        """Return keys and values of edits.

        Args:
            edit: states that carry the edit, [n, e, d], in any floating dtype.
            mask: True where `edit` is a real position, bool [n, e].
            words: unit vector of the answer token that follows each position, zeros where none
                does, [n, e, d]; needed with a word path, unused without.
        """
        # An edit may be projected under autocast and used without it, or the other way round.
        with in_own_precision(self.query.weight.device):
            states = self.edit_norm(edit.to(self.query.weight))
            keys, values = self.key(states), self.value(states)
            if self.words is None or words is None:
                words = None
            else:
                words = words.to(self.query.weight)
                keys = keys + self.words.places(words)
                values = values + self.words.value(self.words.norm(words))
            return ProjectedEdit(
                self._split(keys),
                self._split(values),
                mask.to(self.query.weight.device),
                words,
            )

    def forward(
        self, hidden: Tensor, edit: ProjectedEdit, answered: Tensor | None = None
    ) -> Tensor:
        """Return the change to each hidden state, [b, s, d], in the dtype of `hidden`.

        Args:
            hidden: states leaving the edited layer, [b, s, d].
            edit: the edit of each row, n = b.
            answered: how many tokens of the answer stand up to each state, long [b, s]; None means
                none. Only a word path reads it.
        """
        with in_own_precision(self.query.weight.device):
            asked = self.query(self.query_norm(hidden.to(self.query.weight)))
            if self.words is not None:
                asked = asked + self.words.at(answered)
            queries = self._split(asked)
            if self.words is None or edit.words is None:
                mask = None if edit.is_full else edit.mask[:, None, None, :]
                attended = functional.scaled_dot_product_attention(
                    queries, edit.keys, edit.values, attn_mask=mask
                )
                delta: Tensor = self.output(attended.transpose(1, 2).flatten(2))
                return delta.to(hidden)
            attention = self.words.attention(queries, edit)
            attended = attention[..., :-1].bmm(edit.values.flatten(0, 1)).view(queries.shape)
            delta = self.output(attended.transpose(1, 2).flatten(2))
            delta = delta + self.words(hidden.to(delta), attention, edit.words)
        return delta.to(hidden)

    def _split(self, states: Tensor) -> Tensor:
        rows, length, width = states.shape
        by_head = states.view(rows, length, self.heads, width // self.heads)
        return by_head.transpose(1, 2)  # [n, h, e, k]


class DualAdapters(nn.Module):
    """The adapter of each modality in use, by name: `text`, `vision`."""

    def __init__(
        self, hidden_size: int, config: DualEditConfig, word_vectors: Callable[[Tensor], Tensor]
    ):
        """Build the adapters that `config` asks for.

        Args:
            hidden_size: of the states that they change.
            config: what an edit does.
            word_vectors: gives the model's direction of each token id, as
                `Encoder.word_vectors`; asked only with a word path.
        """
        super().__init__()
        self.by_modality = nn.ModuleDict(
            {
                modality: CrossAttentionAdapter(
                    hidden_size, config.width, config.heads, word_path=config.word_path
                )
                for modality in config.modalities
            }
        )
        self.has_words = config.word_path
        self._signal = config.signal
        self.changes_answers = config.answer_tokens and "text" in config.modalities
        self._word_vectors = word_vectors
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

    def word_vectors(self, words: Tensor) -> Tensor | None:
        """Return the direction of each token id, [..., d], or None without a word path."""
        return self._word_vectors(words) if self.has_words else None

    def carrying(self, batch: Batch) -> Tensor:
        """Return which positions carry an edit, bool [b, s].

        With a word path a target is carried from the last prompt token on: the states before each
        of its words.
        """
        if self._signal == "all":
            return batch.layout.real
        carrying = batch.target
        if self._signal == "prompt+target":
            carrying = carrying | batch.layout.text
        return carrying | batch.target.roll(-1, 1) if self.has_words else carrying

    def positions(self, modality: Modality, layout: TokenLayout) -> Tensor:
        """Return where the adapter of a modality may act, bool [b, s]."""
        if modality == "vision":
            return layout.vision
        return layout.text | layout.answer if self.changes_answers else layout.text


def add_at(
    hidden: Tensor,
    positions: Tensor,
    adapter: CrossAttentionAdapter,
    edit: ProjectedEdit,
    rows: Sequence[int],
    answered: Tensor | None = None,
) -> Tensor:
    """Return `hidden` with an adapter's change added at some positions of some rows.

    Every other element of the result is the very number that `hidden` holds.

    Args:
        hidden: states leaving a layer, [b, s, d]; not modified.
        positions: True where the adapter may act, bool [b, s].
        adapter: computes the change.
        edit: the edit of each of `rows`, n = len(rows).
        rows: indices of the rows to change.
        answered: how many tokens of the answer stand up to each position, long [b, s]; None means
            none.
    """
    positions = positions.to(hidden.device)
    if len(hidden) == len(rows) == 1:  # the common case, in a third of the operations
        columns = positions.nonzero()[:, 1]
        if len(columns) == 0:
            return hidden
        states = hidden.index_select(1, columns)
        if answered is not None:
            answered = answered.to(hidden.device)[:, columns]
        delta = adapter(states.to(edit.device), edit, answered)
        return hidden.index_add(1, columns, delta.to(hidden))
    chosen_rows = torch.tensor(rows, dtype=torch.long, device=hidden.device)
    columns, is_chosen = first_positions(positions[chosen_rows])  # [r, m]
    if columns.numel() == 0:
        return hidden
    places = (chosen_rows[:, None], columns)
    states = hidden[places]  # [r, m, d]
    if answered is not None:
        answered = answered.to(hidden.device)[places]
    delta = adapter(states.to(edit.device), edit, answered).to(hidden)
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
