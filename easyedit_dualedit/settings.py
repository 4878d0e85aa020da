"""Reads plain settings, from YAML or a mapping, and says what is wrong with them."""

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from easyedit_dualedit.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: if the file is missing, is not YAML or holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give an existing YAML") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise ConfigError(f"{path} is not YAML: {line}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    return values


def parse_value(text: str, *, source: str) -> Any:
    """Return the plain value that a text means in YAML, numbers such as 1e-4 included.

    Raises:
        ConfigError: if it is not YAML.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {' '.join(str(error).split())}") from error
    if isinstance(value, str):
        # YAML 1.1 takes 1e-4 for a word.
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def unknown_keys(values: Mapping[str, Any], known: Iterable[str], source: str) -> list[str]:
    """Return one line, with suggestions, if `values` has keys that are not among `known`."""
    allowed = sorted(known)
    unknown = [str(key) for key in values if key not in allowed]
    if not unknown:
        return []
    close = {
        match for key in unknown for match in difflib.get_close_matches(key, allowed, cutoff=0.5)
    }
    suggestion = f"; did you mean {', '.join(sorted(close))}?" if close else ";"
    return [
        f"unknown keys in {source}: {', '.join(unknown)}{suggestion} known keys: "
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


def is_whole(value: Any, least: int) -> bool:
    """Return True for a whole number, `least` or above."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, least: float, most: float) -> bool:
    """Return True for a finite number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and least <= value <= most


def not_one_of(name: str, value: object, allowed: Iterable[str]) -> str:
    """Return the line that says that a value is none of those allowed."""
    return f"{name} = {value!r}: one of {', '.join(allowed)}"


def raise_if(problems: list[str]) -> None:
    """Raise all problems together as one ConfigError, if there are any."""
    if problems:
        raise ConfigError("; ".join(problems))
