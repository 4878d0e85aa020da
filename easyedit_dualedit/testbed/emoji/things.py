"""The things that the emoji model can name: their names, kinds and countries, and their split."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "eval"]

EVALUATION_SHARE = 5
"""One thing in so many is held out: no record that adapters are trained on is about it."""

BYSTANDER_SHARE = 4
"""One held-out thing in so many is shown where image locality asks, and edited nowhere."""

MOST_WORDS = 3
"""Longer names are left out; a flag's own word does not count."""

KINDS = (
    "animal",
    "plant",
    "food",
    "drink",
    "flag",
    "place",
    "vehicle",
    "weather",
    "clothing",
    "instrument",
    "sport",
    "tool",
    "object",
)
"""What a thing can be, in the order in which they are listed to a reader."""

_LEFT_OUT = ("People & Body", "Smileys & Emotion", "Symbols", "Component")
_LEFT_OUT_SUBCATEGORIES = ("time",)
_FLAGS = ("country-flag", "subdivision-flag")
_ODD_MARKS = ("&", "(", ".", " - ", "SAR")
# Their drawings are those of Saudi Arabia (by mistake), Norway and France.
_DRAWN_ALIKE = ("Sark", "Bouvet Island", "Clipperton Island")
_KIND_OF_SUBCATEGORY = {
    "animal-": "animal",
    "plant-": "plant",
    "food-": "food",
    "drink": "drink",
    "place-": "place",
    "transport-": "vehicle",
    "sky & weather": "weather",
    "clothing": "clothing",
    "musical-instrument": "instrument",
    "sport": "sport",
    "tool": "tool",
    "country-flag": "flag",
    "subdivision-flag": "flag",
    "flag": "flag",
}
_KIND_OF_NAME = {
    **dict.fromkeys(
        (
            "amphora",
            "anchor",
            "baby bottle",
            "balance scale",
            "barber pole",
            "bomb",
            "boomerang",
            "brick",
            "broken chain",
            "canned food",
            "carousel horse",
            "chains",
            "closed umbrella",
            "compass",
            "construction sign",
            "droplet",
            "empty nest",
            "feather",
            "fire",
            "folding hand fan",
            "fuel pump",
            "gem stone",
            "hair pick",
            "high voltage",
            "ice cube",
            "jar",
            "link",
            "lipstick",
            "martial arts uniform",
            "microbe",
            "nest with eggs",
            "oil drum",
            "paw prints",
            "pig nose",
            "prayer beads",
            "probing cane",
            "railway track",
            "revolving light",
            "ring buoy",
            "rock",
            "rosette",
            "salt shaker",
            "seat",
            "shield",
            "shopping bags",
            "spider web",
            "spiral shell",
            "stop sign",
            "teapot",
            "thermometer",
            "traffic light",
            "tumbler glass",
            "umbrella",
            "umbrella on ground",
            "vertical traffic light",
            "wheel",
            "wing",
            "wood",
        ),
        "object",
    ),
    "motorway": "place",
    "station": "place",
    "bus stop": "place",
    "seedling": "plant",
}
_NAMES = {
    "hocho": "kitchen knife",
    "black telephone": "telephone",
    "black scissors": "scissors",
    "black nib": "pen nib",
    "womans hat": "woman's hat",
    "womans clothes": "blouse",
    "womans sandal": "sandal",
    "womans boots": "boots",
    "mans shoe": "shoe",
    "aubergine": "eggplant",
    "ear of maize": "corn",
    "ear of rice": "rice plant",
    "lady beetle": "ladybug",
    "electric torch": "flashlight",
    "electric light bulb": "light bulb",
    "automobile": "car",
    "articulated lorry": "truck",
    "horizontal traffic light": "traffic light",
    "police cars revolving light": "revolving light",
    "octagonal sign": "stop sign",
    "bellhop bell": "service bell",
    "shopping trolley": "shopping cart",
    "couch and lamp": "couch",
    "drum with drumsticks": "drum",
    "public address loudspeaker": "loudspeaker",
    "cheering megaphone": "megaphone",
    "tennis racquet and ball": "tennis racket",
    "basketball and hoop": "basketball",
    "ski and ski boot": "skis",
    "cricket bat and ball": "cricket bat",
    "fishing pole and fish": "fishing pole",
    "field hockey stick and ball": "field hockey stick",
    "ice hockey stick and puck": "ice hockey stick",
    "table tennis paddle and ball": "table tennis paddle",
    "badminton racquet and shuttlecock": "badminton racket",
    "lacrosse stick and ball": "lacrosse stick",
    "running shirt with sash": "running shirt",
    "rescue worker’s helmet": "rescue helmet",
    "meat on bone": "meat",
    "slice of pizza": "pizza",
    "fish cake with swirl design": "fish cake",
    "teacup without handle": "teacup",
    "sake bottle and cup": "sake",
    "bottle with popping cork": "champagne",
    "hot beverage": "coffee",
    "shallow pan of food": "paella",
    "poultry leg": "chicken leg",
    "moyai": "moai",
    "multiple musical notes": "musical notes",
    "european castle": "castle",
    "european post office": "post office",
    "house building": "house",
    "dna double helix": "DNA",
    "dvd": "DVD",
    "mount fuji": "Mount Fuji",
    "tokyo tower": "Tokyo Tower",
    "statue of liberty": "Statue of Liberty",
    "kaaba": "Kaaba",
    "roll of paper": "toilet paper",
    "bar of soap": "soap",
    "drop of blood": "blood",
    "black sun with rays": "sun",
    "white medium star": "star",
    "leaf fluttering in wind": "leaves",
    "house with garden": "garden house",
    "cloud with lightning": "lightning cloud",
    "cloud with rain": "rain cloud",
    "cloud with snow": "snow cloud",
    "rolled-up newspaper": "rolled newspaper",
    "pinata": "piñata",
    "spool of thread": "thread",
    "ball of yarn": "yarn",
    "jigsaw puzzle piece": "puzzle piece",
    "closed lock with key": "lock with key",
    "closed book": "red book",
    "small airplane": "small plane",
    "chequered flag": "checkered flag",
    "x-ray": "X-ray",
    "t-rex": "T-rex",
    "diya lamp": "oil lamp",
    "headphone": "headphones",
    "jeans": "jeans",
}


@dataclass(frozen=True, order=True)
class Thing:
    """One nameable thing.

    Attributes:
        name: what it is called in lower case, such as "tiger"; a flag's is "Chad flag".
        kind: one of ``KINDS``.
        country: of a flag the country, otherwise None.
        image: file name of its drawing, which is the same for every vendor.
    """

    name: str
    kind: str
    country: str | None
    image: str


def read_things(entries: Iterable[Mapping[str, Any]], drawn: Iterable[str]) -> tuple[Thing, ...]:
    """Return the things of an ``emoji.json``, in order of name.

    Left out are people, smileys, symbols, clocks, names of more than ``MOST_WORDS`` words, and all
    but the first of those that have the same name.

    Args:
        entries: the content of ``emoji.json``.
        drawn: file names of the pictures that every vendor has.
    """
    available = set(drawn)
    things: dict[str, Thing] = {}
    for entry in sorted(entries, key=lambda each: int(each["sort_order"])):
        thing = _read(entry)
        if thing is not None and thing.image in available:
            things.setdefault(thing.name.lower(), thing)
    return tuple(sorted(things.values()))


def held_out(things: Iterable[Thing], seed: int = 0) -> frozenset[str]:
    """Return the names of the things that are kept for evaluation: a fifth of each kind."""
    return _share_of_each_kind(things, EVALUATION_SHARE, f"{seed} ")


def bystanders(things: Iterable[Thing]) -> frozenset[str]:
    """Return the names of the things that no edit of an evaluation is about: a fourth of a kind.

    Only image locality shows them. Were they edited too, a question about one could be another
    edit's own, and an answer that follows that edit would count as a loss of locality.

    Args:
        things: of the evaluation.
    """
    return _share_of_each_kind(things, BYSTANDER_SHARE, "bystander ")


def _share_of_each_kind(things: Iterable[Thing], share: int, salt: str) -> frozenset[str]:
    by_kind: dict[str, list[str]] = {}
    for thing in things:
        by_kind.setdefault(thing.kind, []).append(thing.name)
    chosen: set[str] = set()
    for names in by_kind.values():
        ranked = sorted(names, key=lambda name: hashlib.sha256(f"{salt}{name}".encode()).digest())
        chosen.update(ranked[: round(len(ranked) / share)])
    return frozenset(chosen)


def _read(entry: Mapping[str, Any]) -> Thing | None:
    subcategory = str(entry["subcategory"])
    if entry["category"] in _LEFT_OUT or subcategory in _LEFT_OUT_SUBCATEGORIES:
        return None
    if subcategory in _FLAGS:
        country = str(entry["name"]).removesuffix(" Flag")
        odd = country in _DRAWN_ALIKE or any(mark in country for mark in _ODD_MARKS)
        if odd or len(country.split()) > MOST_WORDS:
            return None
        return Thing(f"{country} flag", "flag", country, str(entry["image"]))
    name = _plain_name(str(entry["name"]).lower())
    if len(name.split()) > MOST_WORDS:
        return None
    return Thing(name, _kind(name, subcategory), None, str(entry["image"]))


def _plain_name(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    return name.removesuffix(" symbol").removesuffix(" sign")


def _kind(name: str, subcategory: str) -> str:
    if name in _KIND_OF_NAME:
        return _KIND_OF_NAME[name]
    for start, kind in _KIND_OF_SUBCATEGORY.items():
        if subcategory.startswith(start):
            return kind
    return "object"
