"""What a record's edit is asked about, and how a case on disk shows it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.binding import BINDING
from easyedit_dualedit.data.comprehend_edit import NEAREST_WRONG
from easyedit_dualedit.data.records import METRICS, PORTABILITY, Record
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.measure.binding import PICTURE, binding_questions
from easyedit_dualedit.measure.nearest import nearest_questions
from easyedit_dualedit.measure.protocols import OF_SOME_RECORDS, ProtocolName
from easyedit_dualedit.model.inputs import Query

_PORTABILITY = "portability"

_FIELD_OF: Mapping[ProtocolName, str] = {
    "portability": PORTABILITY,
    "binding": BINDING,
    "comprehendedit": NEAREST_WRONG[0],
}


@dataclass(frozen=True)
class Questions:
    """The questions about one record, by what they measure."""

    own: Mapping[str, Query]
    """Questions that are scored one by one: the record's five queries, and maybe further ones,
    which are compared with the unedited model as locality is."""
    close: Mapping[str, Query] = field(default_factory=dict)
    """Queries of specificity: close to the edit, which should leave them alone."""
    ported: Mapping[str, Query] = field(default_factory=dict)
    """Questions whose answer follows from the edit."""
    bound: Mapping[str, Query] = field(default_factory=dict)
    """Questions of binding: about the true thing, the edit's picture, and what is beside it."""
    old: Mapping[str, str] = field(default_factory=dict)
    """Of questions of binding, the answer that the true thing has, where the target is another."""
    near: Mapping[str, Query] = field(default_factory=dict)
    """Questions about the samples nearest to the edit."""

    @classmethod
    def of(
        cls,
        record: Record,
        protocols: Sequence[ProtocolName],
        close: Mapping[str, Query] | None = None,
    ) -> "Questions":
        """Return the questions that protocols ask about a record.

        Args:
            record: the edit and its queries.
            protocols: which are measured.
            close: queries of specificity, needed if it is measured.
        """
        ported = {
            f"{_PORTABILITY}_{place}": query for place, query in enumerate(record.portability)
        }
        bound = binding_questions(record.binding)
        old = record.binding.picture_old if record.binding is not None else None
        return cls(
            dict(zip(METRICS, record.queries, strict=True)),
            dict(close or {}) if "specificity" in protocols else {},
            ported if "portability" in protocols else {},
            bound if "binding" in protocols else {},
            {PICTURE: old} if old is not None and "binding" in protocols else {},
            nearest_questions(record.nearest) if "comprehendedit" in protocols else {},
        )

    @classmethod
    def of_some(cls, record: Record, protocols: Sequence[ProtocolName]) -> "Questions":
        """Return the questions that protocols ask besides a record's own."""
        return replace(cls.of(record, protocols), own={})

    @property
    def every(self) -> dict[str, Query]:
        """All questions."""
        return {**self.own, **self.close, **self.ported, **self.bound, **self.near}

    def to_dict(self, images: Path | None = None) -> dict[str, dict[str, Any]]:
        """Return prompt, name of the picture and target of each question, for a JSON file.

        Args:
            images: folder that the names of pictures are relative to; None gives file names.
        """
        return {name: _shown(query, images) for name, query in self.every.items()}


def asked_protocols(
    records: Sequence[Record], protocols: Sequence[ProtocolName]
) -> list[ProtocolName]:
    """Return the protocols that some of the records have questions of."""
    return [
        protocol
        for protocol in protocols
        if protocol not in OF_SOME_RECORDS or counted(records, protocol)
    ]


def counted(records: Sequence[Record], protocol: ProtocolName) -> int:
    """Return how many records have questions of one of `OF_SOME_RECORDS`."""
    if protocol == "binding":
        return sum(record.binding is not None for record in records)
    if protocol == "comprehendedit":
        return sum(record.nearest is not None for record in records)
    return sum(bool(record.portability) for record in records)


def require_questions(records: Sequence[Record], protocols: Sequence[ProtocolName]) -> None:
    """Refuse records none of which has the questions that a protocol asks.

    Raises:
        DataError: naming the protocol, and the field that they lack.
    """
    for protocol in protocols:
        if protocol in OF_SOME_RECORDS and not counted(records, protocol):
            raise DataError(
                f"none of the {len(records)} records has the field {_FIELD_OF[protocol]}, which"
                f" protocol {protocol} asks about; leave {protocol} out of --protocols, or give"
                " records that have it (docs/guide/numbers.md)"
            )


def digest_of_some(records: Sequence[Record], protocols: Sequence[ProtocolName]) -> str | None:
    """Return a short hash of the questions of `OF_SOME_RECORDS`; None if none is measured."""
    wanted = [protocol for protocol in protocols if protocol in OF_SOME_RECORDS]
    if not wanted:
        return None
    digest = hashlib.blake2b(digest_size=8)
    for record in records:
        asked = Questions.of_some(record, wanted)
        digest.update(repr((asked.to_dict(), dict(asked.old))).encode())
    return digest.hexdigest()


def _shown(query: Query, images: Path | None) -> dict[str, Any]:
    pictures = [picture for picture in query.files if isinstance(picture, Path)]
    names = [
        str(path.relative_to(images)) if images and path.is_relative_to(images) else path.name
        for path in pictures
    ]
    shown = {
        "prompt": query.prompt,
        "image": names[0] if names else None,
        "target": query.target,
    }
    # The frames of a video, or several pictures.
    return shown if len(names) < 2 else {**shown, "images": names}
