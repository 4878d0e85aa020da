"""Runs the frozen part of a model once, and continues from there, edited or not.

Nothing below the first edited layer depends on an edit. `Prefix.read` runs that part for distinct
queries; `Started.resume` has the model's own decoder go on above it, so that masks, positions and
the final norm are the model's.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.backbone import Backbone
from easyedit_dualedit.batch import Batch, Encoder, Query
from easyedit_dualedit.cache import TensorCache
from easyedit_dualedit.config import CACHE_BYTES
from easyedit_dualedit.features import (
    PIXELS,
    Features,
    UnknownFeaturesError,
    blank,
    divided,
    form_of,
    given_features,
    key_of,
    read_features,
)
from easyedit_dualedit.forward import named
from easyedit_dualedit.hooks import LayerEdit, attach, before_call, record
from easyedit_dualedit.sharing import (
    Beginnings,
    Sharing,
    UnshareableError,
    common_beginning,
    require_shareable,
)
from easyedit_dualedit.standing import Forward, compiled, recomputed, replaced, skipped, trimmed
from easyedit_dualedit.state_folder import Known, StateFolder, digest_of_tensors

_PROMPTS = 20_000
"""Tokenised prompts that a run of training keeps."""


class UnsupportedModelError(Exception):
    """The model cannot be continued from a layer; never leaves the package."""


class _Called(Exception):  # noqa: N818  (control flow, not an error)
    """Ends a forward once the decoder is called."""


@dataclass(frozen=True)
class Started:
    """Rows of which all below the first edited layer is done. Shapes: b rows, s tokens, d size."""

    backbone: Backbone
    batch: Batch
    layer: int
    states: Tensor
    """Output of `layer`, [b, s, d]."""
    call: Mapping[str, Any]
    """What the decoder was called with, for all rows."""
    beginnings: Beginnings
    trims: bool = True
    """Whether the last layer that is asked for runs only at the positions asked for."""
    compiles: bool = False
    """Whether layers that run at all positions are compiled."""
    recomputes: bool = False
    """Whether layers run again for their gradient instead of keeping what they computed."""

    def take(self, rows: Sequence[int]) -> "Taken":
        """Return some rows, those that begin alike laid into one."""
        width = self.states.shape[1]
        sharing = Sharing.of(rows, self.beginnings, width)
        index = torch.tensor(list(rows), device=self.states.device)
        return Taken(self, index, sharing.to(self.states.device))


@dataclass(frozen=True)
class Taken:
    """Some rows of those that were started, to go on with. Shapes: r rows, p shared rows."""

    started: Started
    rows: Tensor
    """Which, long [r]."""
    sharing: Sharing

    def resume(self, at: Tensor, edits: Mapping[int, LayerEdit] | None = None) -> Tensor:
        """Return what the decoder gives in the end at some positions, row by row, [n, d].

        Args:
            at: True at those positions, bool [r, s].
            edits: layer, from the first edited one on -> change of its output, [p, w, d].
        """
        backbone = self.started.backbone
        found = self.sharing.found(at)
        with attach(backbone.layers, edits or {}):
            return self._run(len(backbone.layers) - 1, found)[found]

    def states_at(self, layer: int, at: Tensor | None = None) -> Tensor:
        """Return the unedited output of a layer from the first edited one on, [r, s, d].

        Args:
            layer: which.
            at: True at the only positions that will be read, bool [r, s]; None means all.
        """
        start = self.started
        if layer == start.layer:
            return start.states[self.rows]
        with record(start.backbone.layers, [layer], stop=True) as found:
            self._run(layer, None if at is None else self.sharing.found(at))
        return self.sharing.unpack(found[layer])

    def marked(self, mask: Tensor) -> Tensor:
        """Return a mask of all rows, [b, s], where the states that edits change have it, [p, w]."""
        return self.sharing.marked(mask)

    @property
    def first(self) -> Tensor:
        """Return one row of all for each shared row, long [p]."""
        return self.sharing.row[:, -1]  # padding is on the left

    def _run(self, last: int, at: tuple[Tensor, Tensor] | None) -> Tensor:
        start, sharing = self.started, self.sharing
        if sharing.saves:
            call = sharing.call(start.call, start.backbone, done=True)
        else:
            count = len(start.states)
            call = {n: _rows_of(n, value, self.rows, count) for n, value in start.call.items()}
        states = sharing.pack(start.states)
        layers = start.backbone.layers
        with ExitStack() as stack:
            stack.enter_context(skipped(layers, start.layer, states))
            for index in range(start.layer + 1, last + 1):
                wraps: list[Callable[[Forward], Forward]] = []
                if index == last and at is not None and start.trims:
                    wraps.append(trimmed(layers[index], at[0] * states.shape[1] + at[1]))
                elif start.compiles:
                    wraps.append(compiled)
                if start.recomputes and torch.is_grad_enabled():
                    wraps.append(recomputed)
                for wrap in _chained(wraps):
                    stack.enter_context(replaced(layers[index], wrap))
            output = start.backbone.decoder(**call)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output.last_hidden_state
        return hidden


def _chained(wraps: Sequence[Callable[[Forward], Forward]]) -> list[Callable[[Forward], Forward]]:
    """Return at most one wrap that does what all do, the first innermost."""

    def wrap(real: Forward) -> Forward:
        for one in wraps:
            real = one(real)
        return real

    return [wrap] if wraps else []


class Prefix:
    """Reads queries up to a layer, each picture through the vision tower once."""

    def __init__(
        self,
        encoder: Encoder,
        layer: int,
        *,
        budget: int = CACHE_BYTES,
        state_budget: int = CACHE_BYTES,
    ):
        """Keep nothing yet.

        Args:
            encoder: encodes the queries of the model.
            layer: the first edited one.
            budget: bytes of picture features to keep in memory.
            state_budget: bytes of states of the first edited layer to keep in memory.
        """
        self._encoder = encoder
        self._layer = layer
        self.features = TensorCache(budget)
        self.states = TensorCache(state_budget)
        self._folder: StateFolder | None = None
        self._prompts: dict[Hashable, _Prompt] = {}
        self.shares = True
        """Whether rows that begin alike are laid into one."""
        self.trims = True
        """Whether the last layer runs only where its output is read."""
        self.compiles = False
        """Whether edited layers are compiled."""
        self.recomputes = False
        """Whether edited layers run again for their gradient."""

    def forget_states(self) -> None:
        """Hold no state in memory any longer."""
        self.states = TensorCache(self.states.budget)

    def keep_in(self, folder: StateFolder) -> None:
        """Keep states on disk too, and give all of them as the disk does from now on."""
        self._folder = folder
        self.forget_states()
        self._prompts.clear()  # their digests are missing

    @torch.no_grad()
    def read(
        self,
        queries: Sequence[Query],
        ends: Sequence[bool],
        owners: Sequence[Hashable] | None = None,
    ) -> Started:
        """Return the queries, all with pictures or all without, run up to the layer.

        Args:
            queries: one row each.
            ends: whether a row's answer ends with the end-of-turn token.
            owners: rows of one owner are edited alike, so that they may share what they have in
                common; None means no two rows are.

        Raises:
            DataError: as `Encoder.encode`.
            UnsupportedModelError: if the model cannot be continued from there.
        """
        backbone = self._encoder.backbone
        # Under autocast features and states are others.
        casts = torch.is_autocast_enabled(backbone.device.type)
        pictures = [(key_of(query), casts) for query in queries]
        loaded: dict[Hashable, _Loaded] = {}
        prompts = [self._prompt(*pair, loaded) for pair in zip(queries, pictures, strict=True)]
        tokens = [prompt.tokens for prompt in prompts]
        merged = {n: torch.cat([p.small[n] for p in prompts]) for n in prompts[0].small}
        batch = self._encoder.assemble(queries, tokens, merged, ends=ends)
        answers = [(query.target, end) for query, end in zip(queries, ends, strict=True)]
        keys = list(zip([query.prompt for query in queries], pictures, answers, strict=True))
        known = self._recalled(keys, batch, prompts)
        features = self._features(queries, pictures, [known.get(key) for key in keys], loaded)
        call = self._call(batch, [seen for seen in features if seen is not None])
        alike = None if owners is None else list(zip(owners, pictures, strict=True))
        beginnings = self._beginnings(tokens, batch, alike, call)
        # A query that stands in two rows is run in the first of them.
        fresh = [row for row, key in enumerate(keys) if key not in known and keys.index(key) == row]
        for row, states in zip(fresh, self._run(fresh, call, beginnings), strict=True):
            seen = features[row]
            form = None if seen is None else form_of(seen)
            if self._folder is not None:
                states = self._folder.put(_name_of(batch, row, prompts[row]), states, form)
            known[keys[row]] = (states, form)
            self.states.put(keys[row], known[keys[row]])
        states = pad_sequence(
            [known[key][0] for key in keys], batch_first=True, padding_side="left"
        )
        return Started(
            backbone,
            batch,
            self._layer,
            states,
            call,
            beginnings,
            trims=self.trims,
            compiles=self.compiles,
            recomputes=self.recomputes,
        )

    def _recalled(
        self, keys: Sequence[Hashable], batch: Batch, prompts: Sequence["_Prompt"]
    ) -> dict[Hashable, Known]:
        """Return what is kept of some queries, in memory or on disk."""
        known: dict[Hashable, Known] = {}
        for row, key in enumerate(keys):
            if key in known:
                continue
            found = self.states.get(key)
            if found is None and self._folder is not None:
                found = self._folder.get(_name_of(batch, row, prompts[row]))
                if found is not None:
                    self.states.put(key, found)
            if found is not None:
                known[key] = found
        return known

    def _call(self, batch: Batch, features: Sequence[Features]) -> dict[str, Any]:
        """Return what the model calls its decoder with; no layer runs."""
        backbone = self._encoder.backbone
        inputs: dict[str, Any] = dict(batch.inputs)
        calls: list[dict[str, Any]] = []

        def observe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(named(backbone.decoder, args) | kwargs)
            raise _Called

        with ExitStack() as stack:
            stack.enter_context(suppress(_Called))
            if features:
                inputs["pixel_values"] = torch.empty(0, device=backbone.device)
                stack.enter_context(given_features(backbone.model, features))
            stack.enter_context(before_call(backbone.decoder, observe))
            backbone.model(**inputs, use_cache=False)
        if not calls or calls[0].get("inputs_embeds") is None:
            raise UnsupportedModelError("the decoder is not called with embeddings")
        added = calls[0].get("deepstack_visual_embeds")
        if added is not None and len(added) > self._layer:
            raise UnsupportedModelError("pictures reach the decoder above the first edit")
        return calls[0]

    def _beginnings(
        self,
        prompts: Sequence[Mapping[str, Tensor]],
        batch: Batch,
        groups: Sequence[Hashable] | None,
        call: Mapping[str, Any],
    ) -> Beginnings:
        backbone = self._encoder.backbone
        lengths = batch.layout.real.sum(1).tolist()
        if groups is not None and self.shares:
            seen = [backbone.vision_positions(prompt["input_ids"]) for prompt in prompts]
            common = common_beginning(prompts, seen, groups)
            if any(common):
                require_shareable(call, backbone)
            return Beginnings(lengths, groups, common)
        return Beginnings(lengths, range(len(lengths)), [0] * len(lengths))

    def _run(
        self, rows: Sequence[int], call: Mapping[str, Any], beginnings: Beginnings
    ) -> list[Tensor]:
        """Return the output of the layer for some rows of all, each unpadded, [s, d]."""
        if not rows:
            return []
        backbone = self._encoder.backbone
        count, width = call["inputs_embeds"].shape[:2]
        device = call["inputs_embeds"].device
        run = list(range(count)) if call.get("visual_pos_masks") is not None else rows
        sharing = Sharing.of(run, beginnings, width).to(device)
        made = dict(call)
        if sharing.saves:
            made = sharing.call(call, backbone, done=False)
        elif len(run) < count:
            index = torch.tensor(run, device=device)
            made = {n: _rows_of(n, value, index, count) for n, value in call.items()}
        with record(backbone.layers, [self._layer], stop=True) as found:
            backbone.decoder(**made)
        states = sharing.unpack(found[self._layer])
        return [states[run.index(row), width - beginnings.lengths[row] :] for row in rows]

    def _prompt(
        self, query: Query, key: tuple[Hashable, bool], loaded: dict[Hashable, "_Loaded"]
    ) -> "_Prompt":
        """Return what the model reads of a query; what is tokenised for it goes to `loaded`."""
        place = (query.prompt, key)
        held = self._prompts.get(place)
        if held is None:
            tokens, other = self._encoder.tokenised(query)
            loaded.setdefault(key, (query, tokens, other))
            small = {name: value for name, value in other.items() if name not in PIXELS}
            digest = "" if self._folder is None else digest_of_tensors(other, str(key[1]))
            held = _Prompt(tokens, small, digest)
            if len(self._prompts) >= _PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[place] = held
        return held

    def _features(
        self,
        queries: Sequence[Query],
        keys: Sequence[Hashable],
        known: Sequence[Known | None],
        loaded: Mapping[Hashable, "_Loaded"],
    ) -> list[Features | None]:
        """Return of each query the features of its pictures, if it sees any.

        Where the states of all queries of a picture are known nothing reads its features, and they
        are blank.
        """
        needed = self._encoder.backbone.family.needs_picture
        pictures: dict[Hashable, Features] = {}  # one call may need more than the budget holds
        unread: dict[Hashable, _Loaded] = {}
        sees = [bool(query.pictures) or needed for query in queries]
        for query, key, seen, one in zip(queries, keys, sees, known, strict=True):
            if not seen or one is not None or key in pictures or key in unread:
                continue
            if (kept := self.features.get(key)) is not None:
                pictures[key] = Features(*kept)
            else:
                unread[key] = loaded.get(key) or (query, *self._encoder.tokenised(query))
        for key, features in zip(unread, self._looked(list(unread.values())), strict=True):
            pictures[key] = features
            self.features.put(key, (features.kind, features.values))
        found = []
        for key, seen, one in zip(keys, sees, known, strict=True):
            form = None if one is None else one[1]
            if seen and key not in pictures and form is not None:
                pictures[key] = blank(form, self._encoder.backbone.device)
            found.append(pictures[key] if seen else None)
        return found

    def _looked(self, unread: Sequence["_Loaded"]) -> list[Features]:
        """Return the features of the pictures of some queries, through the vision tower at once."""
        if not unread:
            return []
        encoder = self._encoder
        queries, prompts, others = (list(part) for part in zip(*unread, strict=True))
        alike = all(
            other.keys() == others[0].keys()
            and all(value.shape == others[0][name].shape for name, value in other.items())
            for other in others
        )
        if len(unread) > 1 and not alike:
            return [features for one in unread for features in self._looked([one])]
        merged = {name: torch.cat([other[name] for other in others]) for name in others[0]}
        batch = encoder.assemble(
            queries, prompts, merged, with_target=False, ends=[False] * len(queries)
        )
        found = read_features(encoder.backbone.model, dict(batch.inputs))
        counts = [int(encoder.backbone.vision_positions(p["input_ids"]).sum()) for p in prompts]
        parts = divided(found, counts)
        if parts is None:
            return [features for one in unread for features in self._looked([one])]
        return parts


_Loaded = tuple[Query, dict[str, Tensor], dict[str, Tensor]]
"""A query, the tokens of its prompt, and the inputs that are not one number a token."""


@dataclass(frozen=True)
class _Prompt:
    """What the model reads of a query before its answer, without its pixels."""

    tokens: dict[str, Tensor]
    small: dict[str, Tensor]
    """Inputs that are not one number a token."""
    digest: str
    """Of those, of the pixels, and of whether it is read under autocast; empty where nothing is
    kept on disk."""


def _name_of(batch: Batch, row: int, prompt: _Prompt) -> str:
    """Return a digest of all that the model reads of a row, answer included, and of how."""
    real = batch.layout.real[row]
    own = {name: batch.inputs[name][row][real] for name in prompt.tokens}
    return digest_of_tensors(own, prompt.digest)


def head_of(model: Any) -> Any:
    """Return the function from what the decoder gives, [n, d], to logits, [n, v]."""
    embeddings = model.get_output_embeddings()
    text = model.config.get_text_config()
    limit = getattr(text, "final_logit_softcapping", None)

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = embeddings(hidden)
        return logits if limit is None else torch.tanh(logits / limit) * limit

    return head


def _rows_of(name: str, value: Any, rows: Tensor, count: int) -> Any:
    if name in ("visual_pos_masks", "deepstack_visual_embeds", "past_key_values"):
        return None  # they concern the layers that are done
    if isinstance(value, dict):
        return {key: _rows_of(key, item, rows, count) for key, item in value.items()}
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    dim = 1 if name == "position_ids" and value.dim() == 3 else 0
    return value.index_select(dim, rows) if value.shape[dim] == count else value


__all__ = [
    "Prefix",
    "Started",
    "Taken",
    "UnknownFeaturesError",
    "UnshareableError",
    "UnsupportedModelError",
    "head_of",
]
