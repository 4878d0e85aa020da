"""The vision tower in front of training steps: each picture runs through it once."""

from collections.abc import Hashable, Mapping, Sequence

import torch

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.train.frozen_prompts import Loaded
from easyedit_dualedit.train.picture_features import Features, blank, divided, read_features
from easyedit_dualedit.train.state_folder import Known
from easyedit_dualedit.train.tensor_cache import TensorCache


class Vision:
    """Features of pictures, kept within a budget."""

    def __init__(self, encoder: Encoder, budget: int):
        """Keep at most `budget` bytes."""
        self._encoder = encoder
        self.cache = TensorCache(budget)

    def features(
        self,
        queries: Sequence[Query],
        keys: Sequence[Hashable],
        known: Sequence[Known | None],
        loaded: Mapping[Hashable, Loaded],
    ) -> list[Features | None]:
        """Return of each query the features of its pictures, if it sees any.

        Where the states of all queries of a picture are known nothing reads its features, and they
        are blank.
        """
        needed = self._encoder.backbone.family.needs_picture
        pictures: dict[Hashable, Features] = {}  # one call may need more than the budget holds
        unread: dict[Hashable, Loaded] = {}
        sees = [bool(query.pictures) or needed for query in queries]
        for query, key, seen, one in zip(queries, keys, sees, known, strict=True):
            if not seen or one is not None or key in pictures or key in unread:
                continue
            if (kept := self.cache.get(key)) is not None:
                pictures[key] = Features(*kept)
            else:
                unread[key] = loaded.get(key) or (query, *self._encoder.tokenised(query))
        for key, features in zip(unread, self._looked(list(unread.values())), strict=True):
            pictures[key] = features
            self.cache.put(key, (features.kind, features.values))
        found = []
        for key, seen, one in zip(keys, sees, known, strict=True):
            form = None if one is None else one[1]
            if seen and key not in pictures and form is not None:
                pictures[key] = blank(form, self._encoder.backbone.device)
            found.append(pictures[key] if seen else None)
        return found

    def _looked(self, unread: Sequence[Loaded]) -> list[Features]:
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
        counts = [int((p["input_ids"] == encoder.backbone.image_token_id).sum()) for p in prompts]
        parts = divided(found, counts)
        if parts is None:
            return [features for one in unread for features in self._looked([one])]
        return parts
