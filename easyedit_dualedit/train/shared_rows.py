"""Lays rows that begin alike into one, so that what they share is computed once.

Two questions about one picture have the picture and the template's beginning in common. Attention
is causal, so the states there are the same in both rows, and with the same edit they stay the same
above it. A shared row holds the common beginning once and then what follows in each row; a mask
keeps the rows apart, and positions go on from the common beginning in each.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from easyedit_dualedit.model.backbone import Backbone
from easyedit_dualedit.model.inputs import CACHE_NAMES, TokenLayout

_MASKABLE = ("sdpa", "eager")


class UnshareableError(Exception):
    """The model's decoder is called in a way that shared rows do not fit; stays in the package."""


@dataclass(frozen=True)
class CommonPrefixes:
    """Which rows of a batch begin alike; one entry a row in each."""

    lengths: Sequence[int]
    """Real tokens."""
    groups: Sequence[Hashable]
    """Rows of one group begin alike, and are edited alike."""
    common: Sequence[int]
    """How many tokens at the beginning the rows of the group have in common."""
    before: Sequence[int]
    """How many tokens stand before prompt text, and so before an answer."""


@dataclass(frozen=True)
class SharedRows:
    """Where the tokens of some rows stand. Shapes: r rows of s tokens, p shared rows of w slots."""

    row: Tensor
    """Row, among all of the batch, whose token stands in a slot, long [p, w]."""
    position: Tensor
    """Its position in that row, long [p, w]."""
    place: Tensor
    """Number of tokens before it in its row, long [p, w]; 0 in padding."""
    real: Tensor
    """False in padding, bool [p, w]."""
    home: Tensor
    """Shared row of each row, long [r]."""
    slot: Tensor
    """Slot of each position of each row, long [r, s]; of padding, any."""
    own_begin: Tensor
    """Where the tokens begin that the slot's row does not share, long [p, w]; w in padding."""
    shared_end: Tensor
    """Where those end, from the first token on, that it shares, long [p, w]; 0 in padding."""
    before: int
    """Slots at the beginning that hold no prompt text and no answer in any row."""

    @classmethod
    def of(cls, rows: Sequence[int], prefixes: CommonPrefixes, width: int) -> Self:
        """Return some rows of a batch that is padded on the left, laid together.

        Args:
            rows: which of the batch.
            prefixes: of all rows of the batch.
            width: positions of the batch.
        """
        lengths, common = prefixes.lengths, prefixes.common
        home_by_group: dict[Hashable, int] = {}
        total: list[int] = []
        homes, shared, offsets = [], [], []
        for row in rows:
            group = (prefixes.groups[row],) if common[row] else (row, None)
            is_first = group not in home_by_group
            if is_first:
                home_by_group[group] = len(total)
                total.append(0)
            home = home_by_group[group]
            given = 0 if is_first else common[row]
            homes.append(home)
            shared.append(given)
            offsets.append(total[home] - given)  # where the row would begin, had it its own start
            total[home] += lengths[row] - given
        # Where nothing is shared, slots are positions, and the decoder is called as it was.
        slots = max(total) if len(total) < len(homes) else width
        index = torch.tensor(list(rows))
        home_of, given_of = torch.tensor(homes), torch.tensor(shared)
        padding = slots - torch.tensor(total)[home_of]
        length = torch.tensor([lengths[row] for row in rows])
        place = torch.arange(width) - (width - length)[:, None]  # [r, s]
        own = place >= given_of[:, None]
        slot = place + torch.where(
            own, (padding + torch.tensor(offsets))[:, None], padding[:, None]
        ).clamp(min=0)
        slot = slot.clamp(0, slots - 1)
        shape = (len(total), slots)
        at = (home_of[:, None].expand_as(slot)[own], slot[own])
        row_of, position, places = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        real = torch.zeros(shape, dtype=torch.bool)
        row_of[at] = index[:, None].expand_as(slot)[own]
        position[at] = torch.arange(width).expand_as(slot)[own]
        places[at] = place[own]
        real[at] = True
        own_begin = torch.full(shape, slots)
        shared_end = torch.zeros(shape, dtype=torch.long)
        begins = padding + torch.tensor(offsets) + given_of
        own_begin[at] = begins[:, None].expand_as(slot)[own]
        shared_end[at] = (padding + given_of)[:, None].expand_as(slot)[own]
        before = min(
            slots - total[home] + prefixes.before[row]
            for row, home in zip(rows, homes, strict=True)
        )
        return cls(row_of, position, places, real, home_of, slot, own_begin, shared_end, before)

    @property
    def saves(self) -> bool:
        """Whether any two rows share something."""
        return len(self.row) < len(self.home)

    def to(self, device: torch.device) -> "SharedRows":
        """Return the same on a device."""
        held = {name: getattr(self, name) for name in self.__dataclass_fields__}
        moved: dict[str, Any] = {n: v.to(device) for n, v in held.items() if isinstance(v, Tensor)}
        return replace(self, **moved)

    def allowed(self) -> Tensor:
        """Return which slot may attend to which, bool [p, w, w]: of 12,600 tokens 160 MB."""
        keys = torch.arange(self.row.shape[1], device=self.row.device)
        # In place, since a video's rows are long and each step on the way would be as large.
        made = keys >= self.own_begin[..., None]
        made |= keys < self.shared_end[..., None]
        made &= self.real[:, None]
        made.tril_()
        # A softmax over nothing would be NaN.
        made.diagonal(dim1=1, dim2=2).fill_(True)
        return made

    def pack(self, values: Tensor) -> Tensor:
        """Return values of the batch, [b, s, ...], by slot, [p, w, ...]."""
        return values[self.row, self.position]

    def marked(self, mask: Tensor) -> Tensor:
        """Return a mask of the batch, [b, s], by slot, [p, w]: False in padding."""
        return self.pack(mask) & self.real

    def unpack(self, values: Tensor) -> Tensor:
        """Return values by slot, [p, w, ...], for each row again, [r, s, ...]."""
        return values[self.home[:, None], self.slot]

    def places(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Return shared row and slot of the positions where a mask, [r, s], is True; each [n]."""
        row, position = at.nonzero(as_tuple=True)
        return self.home[row], self.slot[row, position]

    def call(self, call: Mapping[str, Any], backbone: Backbone, *, done: bool) -> dict[str, Any]:
        """Return what to call the decoder with, made of the call for the whole batch.

        Args:
            call: keyword arguments for all rows.
            backbone: parts of the model.
            done: whether the layers that pictures reach are past.

        Raises:
            UnshareableError: if an argument has a form that is not known.
        """
        embeddings = call["inputs_embeds"]
        batch = embeddings.shape[:2]
        made: dict[str, Any] = {}
        for name, value in call.items():
            if name in ("attention_mask", "cache_position", *CACHE_NAMES):
                continue
            if name in ("visual_pos_masks", "deepstack_visual_embeds"):
                made[name] = None
            elif not isinstance(value, Tensor) or value.dim() == 0:
                if isinstance(value, Mapping | list | tuple):
                    raise UnshareableError(f"{name} is a {type(value).__name__}")
                made[name] = value
            elif value.shape[:2] == batch:
                made[name] = self.pack(value)
            elif name == "position_ids" and value.dim() == 3 and value.shape[1:] == batch:
                made[name] = value[:, self.row, self.position]
            else:
                raise UnshareableError(f"{name} has the shape {tuple(value.shape)}")
        if made.get("position_ids") is None:
            made["position_ids"] = self.place
        if not done and call.get("visual_pos_masks") is not None:
            made |= self._pictures(call)
        made["attention_mask"] = self._mask(backbone, embeddings.dtype)
        return made

    def _pictures(self, call: Mapping[str, Any]) -> dict[str, Any]:
        seen = call["visual_pos_masks"]
        if seen.shape != call["inputs_embeds"].shape[:2]:
            raise UnshareableError(f"visual_pos_masks has the shape {tuple(seen.shape)}")
        number = (seen.flatten().cumsum(0) - 1).view_as(seen)
        mask = self.marked(seen)
        chosen = self.pack(number)[mask]
        added = call.get("deepstack_visual_embeds")
        return {
            "visual_pos_masks": mask,
            "deepstack_visual_embeds": None if added is None else [x[chosen] for x in added],
        }

    def _mask(self, backbone: Backbone, dtype: torch.dtype) -> Tensor:
        allowed = self.allowed()[:, None]
        if attention_of(backbone) == "sdpa":
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
            ~allowed, torch.finfo(dtype).min
        )


def attention_of(backbone: Backbone) -> str | None:
    """Return the name of the attention that the decoder runs."""
    config: Any = getattr(backbone.decoder, "config", None)
    return getattr(config, "_attn_implementation", None)


def is_causal(call: Mapping[str, Any]) -> bool:
    """Return whether the decoder is called so that no position reads a later one."""
    mask = call.get("attention_mask")
    return isinstance(mask, Tensor) and mask.dim() == 2


def require_shareable(call: Mapping[str, Any], backbone: Backbone) -> None:
    """Check that the decoder takes a mask of ours in place of its own.

    Raises:
        UnshareableError: if it does not, so that rows must be run one by one.
    """
    if attention_of(backbone) not in _MASKABLE:
        raise UnshareableError(f"its attention is {attention_of(backbone)!r}")
    if not is_causal(call):
        raise UnshareableError("pictures are not read causally")
    model: Any = backbone.model
    config = model.config.get_text_config()
    reach = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    width = call["inputs_embeds"].shape[1]
    if any(isinstance(limit, int) and width >= limit for limit in reach):
        raise UnshareableError("a row is longer than attention reaches")


def common_prefixes(
    tokens: Sequence[Tensor], layout: TokenLayout, groups: Sequence[Hashable]
) -> list[int]:
    """Return for each row how many tokens at the beginning all rows of its group have in common.

    It is 0 unless all image tokens are among them, and never reaches the last prompt token.

    Args:
        tokens: inputs that are one number a token, padded on the left, each [b, s].
        layout: of the rows.
        groups: the group of each row.
    """
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    width, device = layout.real.shape[1], layout.real.device
    positions = torch.arange(width, device=device)
    padding = width - layout.real.sum(1)
    unpadded = (positions + padding[:, None]).clamp(max=width - 1)
    first = torch.tensor([members[group][0] for group in groups], device=device)
    alike = torch.ones_like(layout.real)
    for each in tokens:
        rows = each.gather(1, unpadded)
        alike = alike & (rows == rows[first])
    pictured = torch.where(layout.vision, positions + 1, 0).amax(1)  # up to the last image token
    counts = torch.stack([alike.cumprod(1).sum(1), layout.gate - padding, pictured - padding])
    same, before_last, needed = counts.tolist()
    common = [0] * len(groups)
    for own in members.values():
        shared = min(min(same[row], before_last[row]) for row in own)
        if len(own) > 1 and 0 < needed[own[0]] <= shared:
            for row in own:
                common[row] = shared
    return common
