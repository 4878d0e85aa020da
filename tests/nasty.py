"""Values, texts, bytes and tensors that break parsers, and what may come of them."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from easyedit_dualedit.errors import DualEditError

YAML = (
    *("1" * 400, "1" * 5000, "2020-99-99", "2001-01-01", "0x_", "0b2", "12:99:99", "1_000"),
    *(".nan", ".inf", "-.inf", "1e400", "1e300", "1e-400", "null"),
    *("~", "true", "[]", "{}", "[1, 2]", "{a: 1}", '"\\0"', '"' + "a" * 5000 + '"', "'[/b]'"),
    *("!!python/object:os.system {}", "!!binary x", "&a [*a]", "18446744073709551616", "-1"),
    *("99999999999999999999", '"\\ud800"', "!!set {a}", "? a", "*nowhere", "@", "%", "a: b: c"),
    *("4bit", "0", "1.5", "-0.0", "''", "' '", "cuda:99999999999999999999", "cpu:-1", "float8"),
)
"""Scalars and more, as they stand behind a key."""

DEEP_YAML = ("[" * 1200, "{a: " * 600)
"""Values that are too deep to be read: each takes as long as a hundred others."""


def yaml_value(source: random.Random) -> str:
    """Return a value of YAML, seldom one that is too deep."""
    return source.choice(DEEP_YAML if source.random() < 0.02 else YAML)


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 10**400, 2**64, -(2**63), 0.5, float("nan"), float("inf")),
    *("", " ", "a", "a" * 5000, "\0", "[/b]", "\ud800", "../../etc/passwd", "/etc/passwd", "é"),
    *([], {}, [1], ["a", None], {"a": 1}, [[[[]]]], {"a": {"b": []}}, "NaN", "1e999"),
)
"""Values of JSON, and some that JSON does not have but Python writes."""

JSONS = (
    *(b"", b"{}", b"[]", b"null", b"3", b'"a"', b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe"),
    *(b"\xef\xbb\xbf{}", b'{"a": 1}\n{"a": 2}\n', '{"a": 1}'.encode("utf-16"), b"[1" + b"0" * 5000),
    *(b"NaN", b"{1: 2}", b"[1,]", b"\x00", b'{"a": "\\ud800"}', b"[" + b"9" * 5000 + b"]"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt."""

    value: Any = None
    error: str | None = None


def outcome_of(attempt: Callable[[], Any]) -> Outcome:
    """Return what came of an attempt; anything but success and an error in one line fails."""
    try:
        return Outcome(attempt())
    except DualEditError as error:
        told = str(error)
        assert told and "\n" not in told, told
        assert len(told) <= 4000, f"{len(told)} characters: {told[:300]}"
        return Outcome(error=told)


def mutated(content: bytes, seed: int) -> bytes:
    """Return bytes with some flipped, removed, doubled, or cut."""
    source = random.Random(seed)
    changed = bytearray(content)
    for _ in range(source.choice((1, 1, 2, 5, 20))):
        if not changed:
            break
        place = source.randrange(len(changed))
        action = source.randrange(5)
        if action == 0:
            changed[place] ^= 1 << source.randrange(8)
        elif action == 1:
            del changed[place : place + source.choice((1, 4, 100))]
        elif action == 2:
            changed[place:place] = changed[place : place + source.choice((1, 8, 64))]
        elif action == 3:
            changed[place] = source.choice((0, 0x7F, 0x80, 0xFF, ord("9"), ord("["), ord('"')))
        elif source.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def replaced(values: Any, seed: int) -> Any:
    """Return plain values in which one, anywhere, is another, missing, or new."""
    source = random.Random(seed)
    copy = json.loads(json.dumps(values))
    holder = copy
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return copy
        key = source.choice(keys)
        inner = holder[key]
        if isinstance(inner, dict | list) and inner and source.random() < 0.7:
            holder = inner
            continue
        action = source.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1 and isinstance(holder, dict):
            holder[source.choice(("a", "", "\0", "x" * 3000, "format"))] = source.choice(VALUES)
        else:
            holder[key] = source.choice(VALUES)
        return copy


def wrong_tensor(tensor: Tensor, seed: int) -> Tensor:
    """Return a tensor that must not be taken for another one."""
    source = random.Random(seed)
    exact = tensor.detach().clone()
    number = exact.float() if not exact.is_floating_point() else exact
    spoiled = number.clone().reshape(-1)
    if len(spoiled):
        spoiled[source.randrange(len(spoiled))] = source.choice(
            (float("inf"), float("-inf"), float("nan"))
        )
    return source.choice(
        (
            spoiled.reshape(number.shape).to(number.dtype),
            exact.to(torch.int64),
            exact.bool(),
            number.to(torch.complex64),
            exact[:-1].clone() if exact.ndim else exact[None],
            exact[None].clone(),
            torch.empty(0),
            exact.to(torch.float64) if exact.dtype == torch.int8 else exact.to(torch.uint8),
        )
    )


seeds: SearchStrategy[int] = strategies.integers(0, 2**32)
