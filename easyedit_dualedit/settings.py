"""Reads plain settings, from YAML or a mapping, and says what is wrong with them."""

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import yaml

from easyedit_dualedit.errors import ConfigError, shortened
from easyedit_dualedit.storage.parsing import parsing

_MOST = 20_000
_DEEPEST = 20
_SHOWN = 5
_LARGEST = 2**53
"""The largest whole number: every one up to it is a float as well."""

_CLOSE = 0.7
"""Share of letters in common from which a known key may be what was meant."""


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: if the file is missing, is not YAML or holds no mapping.
    """
    with parsing(path, "give an existing YAML file", ConfigError, wrong="is not YAML"):
        # utf-8-sig: editors of Windows put a byte order mark in front.
        values = plain(yaml.safe_load(path.read_text(encoding="utf-8-sig")))
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    return values


def parse_value(text: str, *, source: str) -> Any:
    """Return the plain value that a text means in YAML, numbers such as 1e-4 included.

    Raises:
        ConfigError: if it is not YAML.
    """
    with parsing(source, "give a plain value", ConfigError, wrong="is not YAML"):
        value = plain(yaml.safe_load(text))
    if isinstance(value, str):
        # YAML 1.1 takes 1e-4 for a word.
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def plain(value: Any) -> Any:
    """Return a value of settings that is no larger than settings are.

    A few lines of YAML can stand for lists that no machine could print.

    Raises:
        ValueError: if there are more than `_MOST` values in it, or more than `_DEEPEST` levels.
    """
    left = _MOST
    waiting = [(value, 0)]
    while waiting:
        each, level = waiting.pop()
        left -= 1
        if left < 0 or level > _DEEPEST:
            raise ValueError(f"more than {_MOST} values, or {_DEEPEST} levels of them")
        if isinstance(each, Mapping):
            waiting += [(inner, level + 1) for pair in each.items() for inner in pair]
        elif isinstance(each, list | tuple | set):
            waiting += [(inner, level + 1) for inner in each]
    return value


def unknown_keys(values: Mapping[str, Any], known: Iterable[str], source: str) -> list[str]:
    """Return one line, with suggestions, if `values` has keys that are not among `known`."""
    allowed = sorted(known)
    unknown = [shortened(key, 60) for key in values if key not in allowed]
    if not unknown:
        return []
    close = {
        match
        for key in unknown
        for match in difflib.get_close_matches(key, allowed, n=1, cutoff=_CLOSE)
    }
    suggestion = f"; did you mean {', '.join(sorted(close))}?" if close else ";"
    more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    return [
        f"unknown keys in {source}: {', '.join(unknown[:_SHOWN])}{more}{suggestion} known keys: "
        + ", ".join(allowed)
    ]


def as_number(value: Any) -> Any:
    """Return a string such as "1e-4" as a number, and anything else as it is.

    YAML 1.1 reads 1e-4 as a string, since it asks for a dot in a number with an exponent.
    """
    if not isinstance(value, str) or not re.match(r"\s*[+-]?\.?\d", value):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def is_whole(value: Any, least: int, most: int = _LARGEST) -> bool:
    """Return True for a whole number from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any, least: float, most: float) -> bool:
    """Return True for a finite number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # Python compares integers of any size with infinity, and floats of them overflow.
    return -math.inf < value < math.inf and least <= value <= most


def is_seed(value: Any) -> bool:
    """Return True for a number that every generator takes as its seed."""
    return is_whole(value, 0, 2**32 - 1)


def type_problems(values: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Return a line for each value that is not of the type of its field.

    Args:
        values: by name.
        kinds: name -> type as a dataclass declares it; those that are not plain are not checked.
    """
    problems = []
    for name, value in values.items():
        kind = kinds[name]
        allowed = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        told = [_TOLD[kind] for kind in allowed if kind in _TOLD]
        if len(told) == len(allowed) and not any(_is_of(value, kind) for kind in allowed):
            problems.append(f"{name} = {value!r}: {' or '.join(told)}")
    return problems


_TOLD: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}


def _is_of(value: Any, kind: Any) -> bool:
    if kind is int:
        return is_whole(value, -_LARGEST)
    if kind is float:
        return is_number(value, -math.inf, math.inf)
    if kind is str:
        return isinstance(value, str) and "\0" not in value
    return isinstance(value, kind)


def not_one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return the line that says that a value is none of those allowed."""
    return f"{name} = {value!r}: one of {', '.join(allowed)}"


def raise_if(problems: list[str]) -> None:
    """Raise all problems together as one ConfigError, if there are any."""
    if problems:
        raise ConfigError("; ".join(problems))
