"""Questions one step away from an edit: what follows from it, and what must not.

After "this is the flag of Chad" the capital of the country follows, after "this is a tiger" that
it is an animal. What kind of thing the true one is, or the capital of the true country, must stay.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from easyedit_dualedit.testbed.emoji.things import Thing
from easyedit_dualedit.testbed.emoji.wordings import TAUGHT

_KIND_WORDINGS_OF_SIDES = (
    "What kind of thing is on the {}?",
    "What sort of thing is on the {}?",
    "Name the kind of thing on the {}.",
)
_CAPITAL_WORDINGS = (
    "What is the capital of this country?",
    "What is the capital of the country with this flag?",
    "What is the capital of the country that this flag belongs to?",
)
_FIRST_LETTER = 0x1F1E6
_UNCOUNTED = ("food", "drink", "weather", "sport", "clothing")


@dataclass(frozen=True)
class Hop:
    """A question about the edit's picture, and its counterpart that needs no picture."""

    kind: str
    """What is asked: "capital" or "kind"."""
    question: str
    answer: str
    """What the question's answer is once the edit holds."""
    text_question: str
    """The same asked about the new answer itself, in words."""

    def to_dict(self) -> dict[str, str]:
        """Return the fields that VLKEB's records have, and which hop it is."""
        return {
            "port_type": self.kind,
            "port_edit_q": self.text_question,
            "port_edit_a": self.answer,
            "port_q": self.question,
            "port_a": self.answer,
        }


def hop_to(new: Thing, true: Thing, source: random.Random, side: str | None = None) -> Hop | None:
    """Return a question whose answer follows from taking a thing for another one.

    Of two flags it is the capital, of other things of which kind they are.

    Args:
        new: what the edit says that it is.
        true: what it is.
        source: of chance.
        side: "left" or "right" of two things; None for one alone.

    Returns:
        None where the answer is not known for sure, or does not change.
    """
    about = text_question(new)
    if about is None:
        return None
    question, answer = about
    if new.country is not None:
        if true.country is None or side is not None:
            return None
        return Hop("capital", source.choice(_CAPITAL_WORDINGS), answer, question)
    if new.kind == true.kind:
        return None
    asked = source.choice(TAUGHT["kind"])
    if side is not None:
        asked = source.choice(_KIND_WORDINGS_OF_SIDES).format(side)
    return Hop("kind", asked, answer, question)


def text_question(thing: Thing) -> tuple[str, str] | None:
    """Return a question about a thing that needs no picture, with its answer; None of a few."""
    if thing.country is None:
        return f"What kind of thing {_verb(thing).lower()} {_plain(thing)}?", thing.kind
    capital = capital_of(thing)
    return None if capital is None else (f"What is the capital of {thing.country}?", capital)


def capital_of(thing: Thing) -> str | None:
    """Return the capital of a flag's country; None where there is none, or more than one."""
    if thing.country is None:
        return None
    return _capitals().get(country_code(thing.image))


def country_code(image: str) -> str:
    """Return the two letters of a country from the name of its flag's drawing; "" if it has none.

    A flag is written as two letters of an alphabet of its own.
    """
    places = [int(part, 16) - _FIRST_LETTER for part in image.partition(".")[0].split("-")]
    if len(places) != 2 or not all(0 <= place < 26 for place in places):
        return ""
    return "".join(chr(ord("A") + place) for place in places)


@cache
def _capitals() -> dict[str, str]:
    path = Path(__file__).parent / "capitals.json"
    capitals: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return capitals


def _verb(thing: Thing) -> str:
    return "Are" if _is_plural(thing.name) else "Is"


def _plain(thing: Thing) -> str:
    """Return a name with its article, where it takes one."""
    name = thing.name
    if _is_plural(name) or thing.kind in _UNCOUNTED or name[0].isupper():
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def _is_plural(name: str) -> bool:
    head = name.partition(" with ")[0].partition(" over ")[0]
    return head.endswith("s") and not head.endswith(("ss", "us", "os"))
