"""In how many words each question about a picture is asked, and which of them only evaluation has.

Records for training are asked in the wordings of `TAUGHT` alone. Those for evaluation are requested
in one of `TAUGHT`, as a user would, and rephrased in one of `HELD_OUT`.
"""

from collections.abc import Mapping
from typing import Literal

Family = Literal["name", "left", "right", "kind", "country", "background"]

FAMILIES: tuple[Family, ...] = ("name", "left", "right", "kind", "country", "background")

TAUGHT: Mapping[Family, tuple[str, ...]] = {
    "name": (
        "What is this?",
        "What is in the picture?",
        "What does the picture show?",
        "Name the thing in the picture.",
        "What can you see here?",
        "Which thing is shown?",
        "What is the name of this?",
        "What is this called?",
    ),
    "left": (
        "What is on the left?",
        "What is on the left side of the picture?",
        "Which thing is on the left?",
        "Name the thing on the left.",
        "What does the left half show?",
        "What can you see on the left?",
        "What is the thing on the left called?",
    ),
    "right": (
        "What is on the right?",
        "What is on the right side of the picture?",
        "Which thing is on the right?",
        "Name the thing on the right.",
        "What does the right half show?",
        "What can you see on the right?",
        "What is the thing on the right called?",
    ),
    "kind": (
        "What kind of thing is this?",
        "Which kind of thing is in the picture?",
        "What kind of thing does the picture show?",
        "Name the kind of thing.",
        "What sort of thing is this?",
        "Which group does this belong to?",
        "What type of thing is this?",
    ),
    "country": (
        "Which country's flag is this?",
        "Which country has this flag?",
        "Whose flag is this?",
        "Name the country of this flag.",
        "What country does the flag stand for?",
        "Which country does this flag belong to?",
        "This is the flag of which country?",
    ),
    "background": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "Name the color of the background.",
        "What color is behind it?",
        "What is the background color?",
        "Which color is the background?",
    ),
}
"""Wordings of requests, and of rephrases in training."""

HELD_OUT: Mapping[Family, tuple[str, ...]] = {
    "name": (
        "Tell me what this is.",
        "What can be seen here?",
        "What is depicted in the image?",
        "What would you call this?",
    ),
    "left": (
        "Tell me what is on the left.",
        "What can be seen on the left?",
        "What is depicted on the left of the image?",
        "What would you call the thing on the left?",
    ),
    "right": (
        "Tell me what is on the right.",
        "What can be seen on the right?",
        "What is depicted on the right of the image?",
        "What would you call the thing on the right?",
    ),
    "kind": (
        "Tell me what kind of thing this is.",
        "What sort of thing can be seen here?",
        "To which group does this thing belong?",
        "How would you classify this thing?",
    ),
    "country": (
        "Tell me the country of the flag.",
        "The flag of which country can be seen here?",
        "To which country does this flag belong?",
        "Which country uses this flag?",
    ),
    "background": (
        "Tell me the color of the background.",
        "What color can be seen in the background?",
        "In which color is the background of the image?",
        "The background has which color?",
    ),
}
"""Wordings that only evaluation rephrases in; adapters and gates never meet them in training."""
