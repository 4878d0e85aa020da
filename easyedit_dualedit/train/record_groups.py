"""Records that have something in common, such as a picture: they are held out together."""

from collections.abc import Callable, Hashable, Iterable, Sequence

from easyedit_dualedit.data.records import Record
from easyedit_dualedit.data.scope import wording_of
from easyedit_dualedit.model.inputs import Query, picture_key


def record_groups(
    records: Sequence[Record], traits: Callable[[Record], Iterable[Hashable]]
) -> list[list[int]]:
    """Return the places of records that share a trait, group by group, by the last of each.

    Args:
        records: in any order.
        traits: returns what two records of different groups never have in common.
    """
    leader = list(range(len(records)))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    first: dict[Hashable, int] = {}
    for place, record in enumerate(records):
        for trait in traits(record):
            leader[find(place)] = find(first.setdefault(trait, place))
    groups: dict[int, list[int]] = {}
    for place in range(len(records)):
        groups.setdefault(find(place), []).append(place)
    return sorted(groups.values(), key=lambda group: group[-1])


def shown_by(record: Record) -> list[Hashable]:
    """Return what tells the pictures of an edit and of its rephrase from others."""
    return [*pictures_of(record.request), *pictures_of(record.image_rephrase)]


def asked_by(record: Record) -> set[str]:
    """Return what tells the questions of an edit and of its rephrases from others."""
    return {wording_of(record.request), wording_of(record.text_rephrase)}


def pictures_of(query: Query) -> list[Hashable]:
    """Return what tells a query's pictures from others."""
    return [picture_key(picture) for picture in query.files]
