"""Questions that tell whether an edit changed a picture's answer or the thing itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from easyedit_dualedit.model.inputs import Query

BINDING = "binding"
"""Field of a record with these questions; it may be missing, and so may any of the groups."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "text": ("text_q", "text_a"),
    "picture": ("picture_q", "picture_old", "picture_new"),
    "beside": ("beside_q", "beside_a"),
}
"""What is asked -> the fields of it, of which a record has all or none."""

FIELDS = tuple(field for fields in GROUPS.values() for field in fields)


@dataclass(frozen=True)
class Binding:
    """Questions around an edit that gives a picture another thing's name.

    The picture of a tiger says "leopard" now: what tigers are must stay, and what else is in the
    picture; what another question about the animal is answered with shows whether the picture is
    still bound to the tiger, or to the leopard.
    """

    text: Query | None = None
    """About the true thing, without a picture."""
    picture: Query | None = None
    """Another question about what the edit is about in its picture; the target is the answer for
    the new thing."""
    picture_old: str | None = None
    """Its answer for the true thing."""
    beside: Query | None = None
    """About something else in the picture."""

    @classmethod
    def of(cls, fields: Mapping[str, str], picture: Any, template: str) -> "Binding":
        """Return the questions in a record's field, which has no problems.

        Args:
            fields: some of `FIELDS`.
            picture: of the edit.
            template: what a question about a picture is put into.
        """

        def visual(question: str, answer: str) -> Query | None:
            if question not in fields:
                return None
            return Query(template.replace("{}", fields[question].strip()), picture, fields[answer])

        text = None
        if "text_q" in fields:
            text = Query(fields["text_q"].strip(), None, fields["text_a"])
        return cls(
            text,
            visual("picture_q", "picture_new"),
            fields.get("picture_old"),
            visual("beside_q", "beside_a"),
        )


def missing_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the fields whose question is asked by others of their group, but not by them."""
    return [
        field
        for group in GROUPS.values()
        if any(other in fields for other in group)
        for field in group
        if field not in fields
    ]
