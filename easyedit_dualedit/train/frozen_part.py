"""Runs the frozen part of a model, the layers up to the first edited one, once for each query.

Nothing there depends on an edit. Prompts are tokenised once, pictures run through the vision tower
once, and the states of a query are kept, in memory and on disk.
"""

import operator
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import Hooks, named_arguments, record
from easyedit_dualedit.model.inputs import Batch, Query, input_device
from easyedit_dualedit.model.picture_features import (
    Features,
    PictureFeatures,
    form_of,
    given_features,
)
from easyedit_dualedit.model.query_cache import PreparedQuery, Prompt, TensorCache, TokenisedPrompts
from easyedit_dualedit.train.config import CACHE_BYTES
from easyedit_dualedit.train.shared_rows import (
    CommonPrefixes,
    SharedRows,
    common_prefixes,
    require_shareable,
)
from easyedit_dualedit.train.state_folder import KeptStates, StateFolder
from easyedit_dualedit.train.upper_layers import FrozenOutput, Row, rows_of

VIDEO_TOKENS = 8192
"""Tokens of videos that share a forward at most, unless one video alone has more: rows of 64 frames
fill a GPU alone, and what a layer needs while it runs is then that of one of them."""


class UnsupportedModelError(Exception):
    """The model cannot be continued from a layer; never leaves the package."""


class _Called(Exception):  # noqa: N818  (control flow, not an error)
    """Ends a forward once the decoder is called."""


def precision(device: str, autocast: str) -> AbstractContextManager[Any]:
    """Return the context in which the frozen model computes as a training configuration says.

    Args:
        device: type of the device, such as "cuda".
        autocast: as in `TrainingConfig`; "none" leaves whatever holds outside.
    """
    return nullcontext() if autocast == "none" else torch.autocast(device, torch.bfloat16)


class FrozenPart:
    """Runs queries up to a layer."""

    def __init__(
        self,
        encoder: Encoder,
        layer: int,
        *,
        budget: int = CACHE_BYTES,
        state_budget: int = CACHE_BYTES,
        stays: bool = False,
    ):
        """Keep nothing yet.

        Args:
            encoder: encodes the queries of the model.
            layer: the first edited one.
            budget: bytes of picture features to keep in memory.
            state_budget: bytes of states of the first edited layer to keep in memory.
            stays: whether full caches keep what they hold instead of what comes.
        """
        self._encoder = encoder
        self._layer = layer
        self.pictures = PictureFeatures(encoder, budget, stays=stays)
        self.states = TensorCache(state_budget, stays=stays)
        self._folder: StateFolder | None = None
        self.prompts = TokenisedPrompts(encoder)
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
        self.states = TensorCache(self.states.budget, stays=self.states.stays)

    def forget(self) -> None:
        """Hold neither states nor features of pictures in memory any longer."""
        self.forget_states()
        cache = self.pictures.cache
        self.pictures.cache = TensorCache(cache.budget, stays=cache.stays)

    def keep_in(self, folder: StateFolder) -> None:
        """Keep states on disk too, and give all of them as the disk does from now on."""
        self._folder = folder
        self.forget_states()
        self.prompts = TokenisedPrompts(self._encoder, names=True)

    def read(
        self,
        queries: Sequence[Query],
        prepared: dict[Hashable, PreparedQuery],
        *,
        casts: bool | None = None,
    ) -> None:
        """Have the processor read what is new of some queries at once; see `TokenisedPrompts`.

        Args:
            queries: all that will run.
            prepared: what is tokenised goes there.
            casts: whether they will run under autocast; None means as it is now.
        """
        if casts is None:
            casts = torch.is_autocast_enabled(input_device(self._encoder.backbone.model).type)
        self.prompts.read(queries, [(query.shown_keys, casts) for query in queries], prepared)

    @torch.no_grad()
    def run(
        self,
        queries: Sequence[Query],
        ends: Sequence[bool],
        owners: Sequence[Hashable] | None = None,
        prepared: dict[Hashable, PreparedQuery] | None = None,
    ) -> FrozenOutput:
        """Return what the layer gives for queries that all show pictures, a video, or nothing.

        Args:
            queries: one row each.
            ends: whether a row's answer ends with the end-of-turn token.
            owners: rows of one owner are edited alike, so that they may share what they have in
                common; None means no two rows are.
            prepared: what `prompts` has tokenised already, with pixels that are not read yet.

        Raises:
            DataError: as `Encoder.encode`.
            UnsupportedModelError: if the model cannot be continued from there.
        """
        backbone = self._encoder.backbone
        # Under autocast features and states are others.
        casts = torch.is_autocast_enabled(input_device(backbone.model).type)
        pictures = [(query.shown_keys, casts) for query in queries]
        prepared = {} if prepared is None else prepared
        prompts = [
            self.prompts.get(*pair, prepared) for pair in zip(queries, pictures, strict=True)
        ]
        tokens = [prompt.tokens for prompt in prompts]
        merged = {n: torch.cat([p.small[n] for p in prompts]) for n in prompts[0].small}
        batch = self._encoder.assemble(queries, tokens, merged, ends=ends)
        answers = [(query.target, end) for query, end in zip(queries, ends, strict=True)]
        keys = list(zip([query.prompt for query in queries], pictures, answers, strict=True))
        known = self._recalled(keys, batch, prompts)
        forms = [known[key][1] if key in known else None for key in keys]
        features = self.pictures.of(queries, pictures, forms, prepared)
        # Models without a token of its own for a video take its frames as pictures.
        apart = queries[0].video is not None and backbone.video_token_id is not None
        pixels = "pixel_values_videos" if apart else "pixel_values"
        call = self._call(batch, [seen for seen in features if seen is not None], pixels)
        alike = None if owners is None else list(zip(owners, pictures, strict=True))
        prefixes = self._prefixes(tokens[0], batch, alike, call)
        # A query that stands in two rows is run in the first of them.
        fresh = [row for row, key in enumerate(keys) if key not in known and keys.index(key) == row]
        for row, states in zip(fresh, self._computed(fresh, call, prefixes), strict=True):
            seen = features[row]
            form = None if seen is None else form_of(seen)
            if self._folder is not None:
                states = self._folder.put(prompts[row].name_in(batch, row), states, form)
            known[keys[row]] = (states, form)
            self.states.put(keys[row], known[keys[row]])
        states = pad_sequence(
            [known[key][0] for key in keys], batch_first=True, padding_side="left"
        )
        return FrozenOutput(
            backbone,
            batch,
            self._layer,
            states,
            call,
            prefixes,
            trims=self.trims,
            compiles=self.compiles,
            recomputes=self.recomputes,
        )

    def together(
        self, rows: Sequence[Row], prepared: dict[Hashable, PreparedQuery]
    ) -> list[list[Row]]:
        """Return the rows of each forward of a step.

        Rows that share their beginning are longer than others, which would be padded to them.

        Args:
            rows: of all records of the step.
            prepared: pixels that were read already; those of videos are added.
        """
        seeing = [row for row in rows if row.query.shown]
        # Told apart by object: a look at what they show would take longer than it could save.
        shown = [
            (row.record, *(p if isinstance(p, Path) else id(p) for p in row.query.shown))
            for row in seeing
        ]
        count = Counter(shown)
        parts: list[list[Row]] = []
        for is_video in (False, True):
            for shares in (True, False):
                part = [
                    (row, key)
                    for row, key in zip(seeing, shown, strict=True)
                    if (self.shares and count[key] > 1) == shares
                    and (row.query.video is not None) == is_video
                ]
                if is_video:
                    parts += self._by_video(part, prepared)
                else:
                    parts.append([row for row, _ in part])
        parts.append([row for row in rows if not row.query.shown])
        return [part for part in parts if part]

    def _by_video(
        self,
        rows: Sequence[tuple[Row, Hashable]],
        prepared: dict[Hashable, PreparedQuery],
    ) -> list[list[Row]]:
        """Return the rows of each forward of some that show videos, which a key tells apart.

        Not every model takes videos of several lengths at once.
        """
        casts = torch.is_autocast_enabled(input_device(self._encoder.backbone.model).type)
        videos: dict[Hashable, list[Row]] = {}
        for row, key in rows:
            videos.setdefault(key, []).append(row)
        measured = []
        for each in videos.values():
            query = each[0].query
            prompt = self.prompts.get(query, (query.shown_keys, casts), prepared)
            ids = prompt.tokens["input_ids"]
            measured.append((int(self._encoder.vision_positions(ids).sum()), len(ids), each))
        parts: list[list[Row]] = []
        room = last = 0
        for seen, tokens, each in sorted(measured, key=operator.itemgetter(0)):
            if tokens > room or seen != last:
                parts.append([])
                room, last = VIDEO_TOKENS, seen
            parts[-1] += each
            room -= tokens
        return parts

    def _recalled(
        self, keys: Sequence[Hashable], batch: Batch, prompts: Sequence[Prompt]
    ) -> dict[Hashable, KeptStates]:
        """Return what is kept of some queries, in memory or on disk."""
        known: dict[Hashable, KeptStates] = {}
        for row, key in enumerate(keys):
            if key in known:
                continue
            kept = self.states.get(key)
            if kept is None and self._folder is not None:
                kept = self._folder.get(prompts[row].name_in(batch, row))
                if kept is not None:
                    self.states.put(key, kept)
            if kept is not None:
                known[key] = kept
        return known

    def _call(self, batch: Batch, features: Sequence[Features], pixels: str) -> dict[str, Any]:
        """Return what the model calls its decoder with; no layer runs.

        Args:
            batch: the rows.
            features: of what they show, in order.
            pixels: name of the input that the features are made of.
        """
        backbone = self._encoder.backbone
        inputs: dict[str, Any] = dict(batch.inputs)
        calls: list[dict[str, Any]] = []

        def observe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append(named_arguments(backbone.decoder, args) | kwargs)
            raise _Called

        with ExitStack() as stack:
            stack.enter_context(suppress(_Called))
            if features:
                inputs[pixels] = torch.empty(0, device=input_device(backbone.model))
                stack.enter_context(given_features(backbone.model, features, pixels))
            stack.enter_context(Hooks()).before(backbone.decoder, observe)
            backbone.model(**inputs, use_cache=False)
        if not calls or calls[0].get("inputs_embeds") is None:
            raise UnsupportedModelError("the decoder is not called with embeddings")
        added = calls[0].get("deepstack_visual_embeds")
        if added is not None and len(added) > self._layer:
            raise UnsupportedModelError("pictures reach the decoder above the first edit")
        return calls[0]

    def _prefixes(
        self,
        names: Iterable[str],
        batch: Batch,
        groups: Sequence[Hashable] | None,
        call: Mapping[str, Any],
    ) -> CommonPrefixes:
        layout = batch.layout
        before = (~(layout.text | layout.answer)).cumprod(1).sum(1) - (~layout.real).sum(1)
        lengths, begins = torch.stack([layout.real.sum(1), before]).tolist()
        if groups is not None and self.shares:
            common = common_prefixes([batch.inputs[n] for n in names], layout, groups)
            if any(common):
                require_shareable(call, self._encoder.backbone)
            return CommonPrefixes(lengths, groups, common, begins)
        return CommonPrefixes(lengths, range(len(lengths)), [0] * len(lengths), begins)

    def _computed(
        self, rows: Sequence[int], call: Mapping[str, Any], prefixes: CommonPrefixes
    ) -> list[Tensor]:
        """Return the output of the layer for some rows of all, each unpadded, [s, d]."""
        if not rows:
            return []
        backbone = self._encoder.backbone
        count, width = call["inputs_embeds"].shape[:2]
        device = call["inputs_embeds"].device
        run = list(range(count)) if call.get("visual_pos_masks") is not None else rows
        shared = SharedRows.of(run, prefixes, width).to(device)
        made = dict(call)
        if shared.saves:
            made = shared.call(call, backbone, done=False)
        elif len(run) < count:
            index = torch.tensor(run, device=device)
            made = {n: rows_of(n, value, index, count) for n, value in call.items()}
        with record(backbone.layers, [self._layer], stop=True) as outputs:
            backbone.decoder(**made)
        states = shared.unpack(outputs[self._layer])
        return [states[run.index(row), width - prefixes.lengths[row] :] for row in rows]
