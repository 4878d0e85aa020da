"""The files of pictures that records show: all can be opened, and what each holds."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tqdm import tqdm

from easyedit_dualedit.data.comprehend_edit import NEAREST_RIGHT, NEAREST_WRONG
from easyedit_dualedit.data.records import Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.model.inputs import Query, open_image
from easyedit_dualedit.model.video_frames import strip_of
from easyedit_dualedit.model.videos import Video, is_video_file

_SHOWN = 5
_MOST_THREADS = 16


@dataclass(frozen=True)
class PictureFiles:
    """Pictures that were opened, with a digest of each one's file."""

    digests: Mapping[Path, str]
    nearest: bool = True
    """Whether the samples nearest to an edit are among what its record shows."""

    @classmethod
    def opened(
        cls, records: Iterable[Record], *, nearest: bool = True, progress: bool = True
    ) -> Self:
        """Open every picture that records show, several at a time.

        Args:
            records: that show them.
            nearest: whether the samples nearest to an edit may be asked, too.
            progress: whether to show a bar.

        Raises:
            DataError: naming those that cannot be read, the first few and the number of the others.
        """
        records = list(records)
        paths = sorted({path for record in records for path in _paths(_asked(record, nearest))})
        named = _fields_of_nearest(records) if nearest else {}
        digests: dict[Path, str] = {}
        problems: list[str] = []
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            read = pool.map(_read, paths)
            # A bar only where it takes more than a moment.
            bar = tqdm(read, "checking pictures", len(paths), delay=2.0, disable=not progress)
            for path, outcome in zip(paths, bar, strict=True):
                if isinstance(outcome, DataError):
                    problems.append(f"{named[path]}: {outcome}" if path in named else str(outcome))
                else:
                    digests[path] = outcome
        if problems:
            more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
            raise DataError(
                f"{'; '.join(problems[:_SHOWN])}{more}; once mended, the same command goes on"
            )
        return cls(digests, nearest)

    def shown_by(
        self,
        records: Sequence[Record],
        further: Mapping[int, Mapping[str, Query]] | None = None,
        *,
        together: bool = False,
    ) -> dict[int, str]:
        """Return a digest of all pictures that each record's case shows, by the record's index.

        Args:
            records: whose pictures were opened.
            further: more queries of a record, by its index.
            together: whether a case depends on the pictures of all these records.
        """
        own = {
            record.index: [
                *_asked(record, self.nearest),
                *(further or {}).get(record.index, {}).values(),
            ]
            for record in records
        }
        if together:
            every = self._digest([query for queries in own.values() for query in queries])
            return dict.fromkeys(own, every)
        return {index: self._digest(queries) for index, queries in own.items()}

    def digest_of(self, records: Iterable[Record]) -> str:
        """Return a digest of all pictures that records show, in their order.

        Args:
            records: whose pictures were opened.
        """
        return self._digest([query for record in records for query in _asked(record, self.nearest)])

    def _digest(self, queries: Sequence[Query]) -> str:
        held = [self.digests.get(path, "") for path in _paths(queries)]
        return hashlib.sha256(" ".join(held).encode()).hexdigest()[:16]


def _asked(record: Record, nearest: bool) -> list[Query]:
    asked = [*record.queries, *record.portability]
    if nearest and record.nearest is not None:
        asked += [*record.nearest.wrong, *record.nearest.right]
    return asked


def _fields_of_nearest(records: Iterable[Record]) -> dict[Path, str]:
    """Return which record and fields name a picture of a sample nearest to an edit."""
    named: dict[Path, str] = {}
    for record in records:
        if record.nearest is None:
            continue
        for fields, queries in (
            (NEAREST_WRONG, record.nearest.wrong),
            (NEAREST_RIGHT, record.nearest.right),
        ):
            for path in _paths(queries):
                named.setdefault(path, f"record {record.index}, field {' or '.join(fields)}")
    return named


def _paths(queries: Iterable[Query]) -> list[Path]:
    return [each for query in queries for each in query.files if isinstance(each, Path)]


def _read(path: Path) -> str | DataError:
    try:
        if is_video_file(path):
            strip_of(Video(path), 1)
        else:
            open_image(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"cannot read {path}: {error.strerror}")
