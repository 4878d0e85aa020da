"""Things: which entries of the list are kept, what they are called, and their split."""

from collections import Counter
from typing import Any

import pytest

from easyedit_dualedit.testbed.emoji.things import KINDS, Thing, held_out, read_things


def _entry(name: str, category: str, subcategory: str, order: int = 0) -> dict[str, Any]:
    image = f"{name.lower().replace(' ', '-')}.png"
    return {
        "name": name,
        "category": category,
        "subcategory": subcategory,
        "sort_order": order,
        "image": image,
    }


TIGER = _entry("TIGER", "Animals & Nature", "animal-mammal", 2)
CHAD = _entry("Chad Flag", "Flags", "country-flag", 1)


def _things(*entries: dict[str, Any]) -> tuple[Thing, ...]:
    return read_things(entries, [entry["image"] for entry in entries])


def test_a_thing_has_a_lower_case_name_a_kind_and_no_country() -> None:
    assert _things(TIGER) == (Thing("tiger", "animal", None, "tiger.png"),)


def test_a_flag_has_its_country() -> None:
    assert _things(CHAD) == (Thing("Chad flag", "flag", "Chad", "chad-flag.png"),)


@pytest.mark.parametrize(
    "entry",
    [
        _entry("RUNNER", "People & Body", "person-activity"),
        _entry("GRINNING FACE", "Smileys & Emotion", "face-smiling"),
        _entry("CLOCK FACE ONE OCLOCK", "Travel & Places", "time"),
        _entry("SUN BEHIND RAIN CLOUD TOO", "Travel & Places", "sky & weather"),
        _entry("Papua New Guinea Too Flag", "Flags", "country-flag"),
        _entry("Antigua & Barbuda Flag", "Flags", "country-flag"),
        _entry("Sark Flag", "Flags", "country-flag"),
    ],
    ids=lambda entry: entry["name"],
)
def test_left_out(entry: dict[str, Any]) -> None:
    assert _things(entry) == ()


def test_plain_names_and_kinds() -> None:
    entries = (
        _entry("HOCHO", "Food & Drink", "dishware"),
        _entry("SPIDER WEB", "Animals & Nature", "animal-bug"),
        _entry("HIGH VOLTAGE SIGN", "Travel & Places", "sky & weather"),
        _entry("CHURCH", "Travel & Places", "place-religious"),
    )
    found = {thing.name: thing.kind for thing in _things(*entries)}
    assert found == {
        "kitchen knife": "object",
        "spider web": "object",
        "high voltage": "object",
        "church": "place",
    }
    assert set(found.values()) <= set(KINDS)


def test_the_first_of_a_name_is_kept_and_a_vendors_gap_leaves_out() -> None:
    again = TIGER | {"image": "other.png", "sort_order": 9}
    assert [thing.image for thing in _things(again, TIGER)] == ["tiger.png"]
    assert read_things([TIGER], []) == ()


def test_a_fifth_of_each_kind_is_held_out_by_seed() -> None:
    things = [Thing(f"{kind} {n}", kind, None, "") for kind in KINDS for n in range(20)]
    names = held_out(things)
    assert Counter(name.split()[0] for name in names) == dict.fromkeys(KINDS, 4)
    assert held_out(reversed(things)) == names
    assert held_out(things, seed=1) != names
