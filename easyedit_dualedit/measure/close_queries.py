"""Queries of specificity on disk: drawn once for a run, by all of its processes together."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tqdm import tqdm

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.files import read_json, write_bytes, write_json
from easyedit_dualedit.measure.run import QUERIES_FOLDER
from easyedit_dualedit.measure.sample_features import (
    SampleFeatures,
    distinct_pictures,
    picture_features,
)
from easyedit_dualedit.measure.specificity import TOGETHER, Draws, require_drawable
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query
from easyedit_dualedit.model.videos import Video
from easyedit_dualedit.storage.made_once import made_once

_PICTURES = 256
"""Pictures whose features share a file."""

_BATCH = 32

CloseQueries = dict[int, dict[str, Query]]
"""Index of a record -> the queries of specificity, by their kinds."""


def close_queries(
    records: Sequence[Record],
    others: Sequence[Record],
    folder: Path,
    encoder: Callable[[], Encoder],
    *,
    drawn_from: Sequence[str],
    progress: bool = True,
) -> CloseQueries:
    """Return the queries of specificity of each record; see `specificity_queries`.

    Processes that ask for the same share the work. A run that goes on draws none again, and needs
    no model for them.

    Args:
        records: edits that are measured.
        others: samples to draw from.
        folder: of the run.
        encoder: returns what encodes for the unedited model; called only if something is missing.
        drawn_from: what tells these records, their pictures, samples and model from others.
        progress: whether to show bars.

    Raises:
        DataError: as `specificity_queries`, or if a file is damaged.
        LockError: if another process at work on them does not end.
    """
    require_drawable(records, others)
    digest = hashlib.blake2b("\n".join(drawn_from).encode(), digest_size=6).hexdigest()
    place = folder / QUERIES_FOLDER / digest
    chunks = [records[start : start + TOGETHER] for start in range(0, len(records), TOGETHER)]
    paths = [place / f"{chunk[0].index:05d}.json" for chunk in chunks]
    work = _Work(others, place / "pictures", encoder, progress)
    with tqdm(total=len(records), desc="close queries", unit="edit", disable=not progress) as bar:
        made_once(
            paths,
            lambda number: _write(paths[number], chunks[number], work.draws),
            seen=lambda number: bar.update(len(chunks[number])),
        )
    shutil.rmtree(work.folder, ignore_errors=True)
    return {index: queries for path in paths for index, queries in _read(path).items()}


class _Work:
    """What draws need, made or read as soon as something has to be drawn."""

    def __init__(
        self,
        others: Sequence[Record],
        folder: Path,
        encoder: Callable[[], Encoder],
        progress: bool,
    ):
        self._others = others
        self.folder = folder
        self._encoder = encoder
        self._progress = progress

    @cached_property
    def draws(self) -> Draws:
        encoder = self._encoder()
        pool = [replace(other.request, target=None) for other in self._others]
        looked_at = distinct_pictures(pool)
        parts = [looked_at[at : at + _PICTURES] for at in range(0, len(looked_at), _PICTURES)]
        paths = [self.folder / f"{place:04d}.safetensors" for place in range(len(parts))]
        with tqdm(
            total=len(looked_at), desc="looking", unit="picture", disable=not self._progress
        ) as bar:

            def make(place: int) -> None:
                image = picture_features(encoder, parts[place], _BATCH)
                write_bytes(paths[place], save({"image": image}))

            made_once(
                paths,
                make,
                seen=lambda place: bar.update(len(parts[place])),
            )
        image = torch.cat([load_file(path)["image"] for path in paths])
        features = SampleFeatures.joined(encoder, pool, image)
        return Draws(encoder, self._others, features, batch_size=_BATCH)


def _write(path: Path, records: Sequence[Record], draws: Draws) -> None:
    plain = {
        str(record.index): {kind: _plain(query) for kind, query in queries.items()}
        for record, queries in zip(records, draws.of(records), strict=True)
    }
    write_json(path, plain)


def _read(path: Path) -> CloseQueries:
    return {
        int(index): {kind: _query_of(values) for kind, values in queries.items()}
        for index, queries in (read_json(path) or {}).items()
    }


def _plain(query: Query) -> dict[str, Any]:
    pictures = [str(picture) for picture in query.pictures]
    values: dict[str, Any] = {"prompt": query.prompt, "pictures": pictures, "target": query.target}
    video = query.video
    if video is not None:
        held = isinstance(video.source, tuple)
        frames = [str(frame) for frame in query.files] if held else str(video.source)
        values["video"] = [frames, video.rate, video.count]
    return values


def _query_of(values: Mapping[str, Any]) -> Query:
    if "video" in values:
        source, rate, count = values["video"]
        held = [Path(name) for name in source] if isinstance(source, list) else Path(source)
        return Query(values["prompt"], Video(held, rate, count), values["target"])
    pictures = [Path(picture) for picture in values["pictures"]]
    return Query(values["prompt"], pictures or None, values["target"])
