"""What tells how alike two samples are: a vector of each question, and one of each picture."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from tqdm import tqdm

from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.hooks import record, undisturbed
from easyedit_dualedit.model.inputs import Query, input_device
from easyedit_dualedit.model.video_frames import batches_by_length


@dataclass(frozen=True)
class SampleFeatures:
    """Features of some samples, float32 on the CPU. Shapes: n samples, d hidden size."""

    text: Tensor
    """Mean word embedding of the question, [n, d]."""
    image: Tensor
    """Mean output of the first decoder layer at the image tokens, [n, d]."""
    row_of: dict[Hashable, int]
    """Pictures -> the first sample that has them."""

    @classmethod
    def of(
        cls, encoder: Encoder, queries: Sequence[Query], batch_size: int, *, progress: bool = False
    ) -> Self:
        """Return the features of samples; each picture is looked at once."""
        looked_at = distinct_pictures(queries)
        image = picture_features(encoder, looked_at, batch_size, progress=progress)
        return cls.joined(encoder, queries, image)

    @classmethod
    def joined(cls, encoder: Encoder, queries: Sequence[Query], image: Tensor) -> Self:
        """Return the features of samples, given those of their `distinct_pictures`, [m, d]."""
        first: dict[Hashable, int] = {}
        for place, query in enumerate(queries):
            first.setdefault(query.shown_keys, place)
        number = {key: place for place, key in enumerate(first)}
        rows = torch.tensor([number[query.shown_keys] for query in queries])
        return cls(text_features(encoder, queries), image[rows], first)

    def beside(self, encoder: Encoder, queries: Sequence[Query], batch_size: int) -> Self:
        """Return the features of other samples; pictures that these have are not looked at."""
        keys = [query.shown_keys for query in queries]
        new = [query for query, key in zip(queries, keys, strict=True) if key not in self.row_of]
        fresh = type(self).of(encoder, new, batch_size) if new else self
        image = torch.stack(
            [
                self.image[self.row_of[key]]
                if key in self.row_of
                else fresh.image[fresh.row_of[key]]
                for key in keys
            ]
        )
        return type(self)(text_features(encoder, queries), image, {})


def distinct_pictures(queries: Sequence[Query]) -> list[Query]:
    """Return the first query of each picture, or of the pictures that stand together."""
    first: dict[Hashable, Query] = {}
    for query in queries:
        first.setdefault(query.shown_keys, query)
    return list(first.values())


@torch.no_grad()
def text_features(encoder: Encoder, queries: Sequence[Query]) -> Tensor:
    """Return the mean word embedding of each question, float32 on the CPU, [n, d]."""
    embed = encoder.backbone.model.get_input_embeddings()  # type: ignore[operator]
    known: dict[str, Tensor] = {}
    for prompt in dict.fromkeys(query.prompt for query in queries):
        ids = encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor(ids, device=input_device(encoder.backbone.model))
        known[prompt] = embed(tokens).float().mean(0).cpu()
    return torch.stack([known[query.prompt] for query in queries])


@torch.no_grad()
def picture_features(
    encoder: Encoder, queries: Sequence[Query], batch_size: int, *, progress: bool = False
) -> Tensor:
    """Return the mean output of the first layer at image tokens, float32 on the CPU, [n, d]."""
    # Image tokens stand before the question, so their states do not depend on it.
    rows: dict[int, Tensor] = {}
    backbone = encoder.backbone
    with tqdm(total=len(queries), desc="looking", unit="picture", disable=not progress) as bar:
        for places in batches_by_length(queries, encoder.clip_of, batch_size):
            batch = encoder.encode([queries[place] for place in places], with_target=False)
            with (
                undisturbed(backbone.model),
                record(backbone.layers, [0], stop=True) as seen,
            ):
                backbone.model(**batch.inputs, use_cache=False)
            hidden = seen[0].float()
            weight = batch.layout.vision.to(hidden)[..., None]  # [b, s, 1]
            means = ((hidden * weight).sum(1) / weight.sum(1).clamp(min=1)).cpu()
            rows.update(zip(places, means, strict=True))
            bar.update(batch.size)
    return torch.stack([rows[place] for place in range(len(queries))])
