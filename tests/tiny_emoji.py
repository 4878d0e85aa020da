"""A small world of things, each drawn as a square of its own colour, that needs no package."""

import io
from collections.abc import Sequence
from functools import cache

from PIL import Image

from easyedit_dualedit.testbed.emoji.drawing import VENDORS, Drawings
from easyedit_dualedit.testbed.emoji.things import Thing

_NAMES = {
    "animal": "ant bat bear bee cat cow deer dog dove duck eel elk emu fish fox frog goat hen",
    "food": "bagel bread cake corn egg fig jam kiwi leek lime mango nut olive pea pear pie rice",
    "vehicle": "boat bus canoe car cart ferry jeep kayak lorry plane raft ship sled taxi tram",
}
_COUNTRIES = (
    "AT Austria, BE Belgium, BG Bulgaria, CH Switzerland, CL Chile, CU Cuba, CY Cyprus, CZ Czechia,"
    " DE Germany, DK Denmark, EE Estonia, EG Egypt, ES Spain, FI Finland, FR France, GH Ghana,"
    " GR Greece, HR Croatia, HU Hungary, IE Ireland, IS Iceland, IT Italy, JP Japan, KE Kenya,"
    " LV Latvia, NE Niger, NO Norway, OM Oman, PE Peru, PL Poland, TD Chad, ZA South Africa"
)


@cache
def tiny_things() -> tuple[Thing, ...]:
    """Return 50 things of three kinds and 32 flags, in order of name."""
    things = [
        Thing(name, kind, None, f"1f4{number:02x}.png")
        for kind, names in _NAMES.items()
        for number, name in enumerate(names.split())
    ]
    for line in _COUNTRIES.split(", "):
        code, country = line.split(" ", 1)
        image = "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in code)
        things.append(Thing(f"{country} flag", "flag", country, f"{image}.png"))
    return tuple(sorted(things))


@cache
def tiny_world() -> tuple[Sequence[Thing], Drawings]:
    """Return the things with a drawing of each by every vendor."""
    files = {
        (vendor, thing.name): _square(number, place)
        for number, thing in enumerate(tiny_things())
        for place, vendor in enumerate(VENDORS)
    }
    return tiny_things(), Drawings(files)


def _square(number: int, place: int) -> bytes:
    color = (number * 83 % 256, number * 47 % 256, 60 + 120 * place, 255)
    content = io.BytesIO()
    Image.new("RGBA", (64, 64), color).save(content, "PNG")
    return content.getvalue()
