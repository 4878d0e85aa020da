"""Questions as a model's rows: each prompt is tokenised once, and each picture looked at once."""

import logging
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from easyedit_dualedit.model.answer_logits import last_position, logits_at
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import undisturbed
from easyedit_dualedit.model.inputs import Batch, Query, input_device
from easyedit_dualedit.model.picture_features import (
    Features,
    PictureFeatures,
    UnknownFeaturesError,
    given_features,
)
from easyedit_dualedit.model.query_cache import PreparedQuery, Prompt, TokenisedPrompts
from easyedit_dualedit.model.row_memory import is_out_of_memory

logger = logging.getLogger(__name__)

_FEATURE_BYTES = 2**28
_LOOKED_AT = 8
"""Pictures that pass the vision tower together."""
_TOLERANCE = 1e-4
_ROUGH_TOLERANCE = 5e-2  # of models in half precision


class RowSource:
    """Makes batches of questions for one model; what the model does not bear is found out first."""

    def __init__(self, encoder: Encoder):
        """Know nothing of the model yet."""
        self.encoder = encoder
        self.gives_features = True
        """Whether the model takes features of pictures that it has computed before."""
        self._checked: set[str] = set()

    def rows(self, queries: Sequence[Query]) -> "EncodedRows":
        """Return some questions as rows."""
        return EncodedRows(self, queries)

    def kind(self, query: Query) -> str:
        """Return what a question shows; rows of a batch show one kind of thing."""
        if query.video is not None and self.encoder.backbone.video_token_id is not None:
            return "pixel_values_videos"
        if query.shown or self.encoder.backbone.family.needs_picture:
            return "pixel_values" if query.shown else "blank"
        return ""

    def must_check(self, kind: str) -> bool:
        """Return whether it is not known yet if features are right for a kind of thing; once."""
        if not kind or not self.gives_features or kind in self._checked:
            return False
        self._checked.add(kind)
        return True

    def is_right(self, queries: Sequence[Query], batch: Batch) -> bool:
        """Return whether a batch with features is read as its questions are without.

        Raises:
            RuntimeError, ValueError, TypeError, IndexError: what the model says to a call that it
                cannot take without the pixels.
        """
        model: Any = self.encoder.backbone.model
        plain = self.encoder.encode(queries, with_target=False)
        with torch.no_grad(), undisturbed(model):
            got, wanted = (
                logits_at(
                    self.encoder.backbone,
                    last_position(one.inputs["input_ids"]),
                    partial(model, **one.inputs, use_cache=False),
                ).float()
                for one in (batch, plain)
            )
            # BLIP-2 looks at the pixels itself when it generates.
            model.generate(**batch.inputs, max_new_tokens=1, do_sample=False)
        exact = next(model.parameters()).dtype == torch.float32
        bound = _TOLERANCE if exact else _ROUGH_TOLERANCE
        return torch.allclose(got, wanted, rtol=0, atol=bound * float(wanted.abs().amax()))


class EncodedRows:
    """Some questions as rows of one model."""

    def __init__(self, source: RowSource, queries: Sequence[Query]):
        """Tokenise the questions.

        Raises:
            DataError: if a picture cannot be read, or the processor refuses it.
        """
        self._source = source
        self._encoder = source.encoder
        self._queries = queries
        self._prompts = TokenisedPrompts(source.encoder)
        self._pictures = PictureFeatures(source.encoder, _FEATURE_BYTES)
        self._prepared: dict[Hashable, PreparedQuery] = {}
        self._keys = [(query.shown_keys, False) for query in queries]
        self.lengths = [self._length(place) for place in range(len(queries))]
        """Tokens of each row, its answer included."""

    def video_length(self, place: int) -> int:
        """Return the tokens of the video that a row shows; 0 without one."""
        if self._queries[place].video is None:
            return 0
        ids = self._prompt(place).tokens["input_ids"]
        return int(self._encoder.vision_positions(ids).sum())

    @contextmanager
    def batch(self, places: Sequence[int], *, with_target: bool) -> Iterator[Batch]:
        """Yield some rows that show one kind of thing, for calls of the model inside the block.

        Args:
            places: of the questions.
            with_target: append their answers.
        """
        source, queries = self._source, [self._queries[place] for place in places]
        kind = source.kind(queries[0])
        if source.must_check(kind):
            try:
                with self._given(places[:_LOOKED_AT], kind, with_target=False) as batch:
                    source.gives_features = source.is_right(queries[:_LOOKED_AT], batch)
            # Whatever a family does without its pixels: it is asked as it is then.
            except (UnknownFeaturesError, RuntimeError, ValueError, TypeError, IndexError) as error:
                if is_out_of_memory(error):
                    raise
                logger.info("pictures are looked at anew in each forward: %s", error)
                source.gives_features = False
        if kind and not source.gives_features:
            yield self._encoder.encode(queries, with_target=with_target)
            return
        with self._given(places, kind, with_target=with_target) as batch:
            yield batch

    @contextmanager
    def _given(self, places: Sequence[int], kind: str, *, with_target: bool) -> Iterator[Batch]:
        encoder, backbone = self._encoder, self._encoder.backbone
        queries = [self._queries[place] for place in places]
        prompts = [self._prompt(place) for place in places]
        small = {
            name: torch.cat([prompt.small[name] for prompt in prompts]) for name in prompts[0].small
        }
        batch = encoder.assemble(
            queries,
            [prompt.tokens for prompt in prompts],
            small,
            with_target=with_target,
            ends=[False] * len(queries),
        )
        if not kind:
            yield batch
            return
        for start in range(0, len(places), _LOOKED_AT):
            self._features(places[start : start + _LOOKED_AT])
        features = [each for each in self._features(places) if each is not None]
        pixels = "pixel_values" if kind == "blank" else kind
        inputs = {**batch.inputs, pixels: torch.empty(0, device=input_device(backbone.model))}
        with given_features(backbone.model, features, pixels):
            yield replace(batch, inputs=inputs)

    def _features(self, places: Sequence[int]) -> list[Features | None]:
        keys = [self._keys[place] for place in places]
        queries = [self._queries[place] for place in places]
        return self._pictures.of(queries, keys, [None] * len(keys), self._prepared)

    def _prompt(self, place: int) -> Prompt:
        return self._prompts.get(self._queries[place], self._keys[place], self._prepared)

    def _length(self, place: int) -> int:
        target = self._queries[place].target
        answer = len(self._encoder.target_ids(target)) if target else 0
        return len(self._prompt(place).tokens["input_ids"]) + answer
