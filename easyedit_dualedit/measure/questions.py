"""What a record's edit is asked about, and how a case on disk shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyedit_dualedit.data.records import METRICS, Record
from easyedit_dualedit.measure.protocols import ProtocolName
from easyedit_dualedit.model.inputs import Query

_PORTABILITY = "portability"


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
        return cls(
            dict(zip(METRICS, record.queries, strict=True)),
            dict(close or {}) if "specificity" in protocols else {},
            ported if "portability" in protocols else {},
        )

    @property
    def every(self) -> dict[str, Query]:
        """All questions."""
        return {**self.own, **self.close, **self.ported}

    def to_dict(self, images: Path | None = None) -> dict[str, dict[str, Any]]:
        """Return prompt, name of the picture and target of each question, for a JSON file.

        Args:
            images: folder that the names of pictures are relative to; None gives file names.
        """
        return {name: _shown(query, images) for name, query in self.every.items()}


def _shown(query: Query, images: Path | None) -> dict[str, Any]:
    pictures = [picture for picture in query.pictures if isinstance(picture, Path)]
    names = [
        str(path.relative_to(images)) if images and path.is_relative_to(images) else path.name
        for path in pictures
    ]
    return {
        "prompt": query.prompt,
        "image": names[0] if names else None,
        "target": query.target,
    }
