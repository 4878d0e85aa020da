"""Whatever a parser raises is one line with the source and the remedy."""

import json
from pathlib import Path

import pytest

from easyedit_dualedit.errors import ArchiveError, ConfigError, DataError
from easyedit_dualedit.settings import parse_value, read_yaml, type_problems
from easyedit_dualedit.storage.parsing import json_in, parsing


@pytest.mark.parametrize(
    "error",
    [ValueError("a\nb"), KeyError("a"), RecursionError(), OverflowError("x" * 9000), TypeError()],
)
def test_everything_raised_is_one_line(error: Exception):
    with pytest.raises(ArchiveError) as told, parsing("file", "take a copy", ArchiveError):
        raise error
    line = str(told.value)
    assert line.startswith("file is damaged (") and line.endswith("; take a copy")
    assert "\n" not in line and len(line) < 300


def test_errors_of_this_package_pass_and_the_systems_name_their_reason():
    with pytest.raises(ConfigError, match="^mine$"), parsing("file", "remedy"):
        raise ConfigError("mine")
    with pytest.raises(DataError, match="^cannot read file: no room; remedy$"):  # noqa: SIM117
        with parsing("file", "remedy"):
            raise OSError(28, "no room")


@pytest.mark.parametrize(
    "text", ["1" * 5000, "2020-99-99", "0x_", "[" * 3000, "!!python/name:os.a"]
)
def test_yaml_that_no_parser_takes_is_told(tmp_path: Path, text: str):
    path = tmp_path / "a.yaml"
    path.write_text(f"key: {text}", encoding="utf-8")
    with pytest.raises(ConfigError, match="a.yaml is not YAML .*; give an existing YAML file"):
        read_yaml(path)
    with pytest.raises(ConfigError, match="--set a.b is not YAML"):
        parse_value(text, source="--set a.b")


def test_a_few_lines_that_stand_for_a_million_values_are_refused(tmp_path: Path):
    lines = ["a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = tmp_path / "a.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="more than 20000 values"):
        read_yaml(path)


def test_a_byte_order_mark_is_read_and_other_encodings_are_told(tmp_path: Path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert json_in(path, "remedy") == [1]
    path.write_bytes(json.dumps([1]).encode("utf-16"))
    with pytest.raises(DataError, match="it is UTF-16: save it as UTF-8"):
        json_in(path, "remedy")
    path.write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_yaml(path) == {"a": 1}


def test_quotes_are_cut_and_the_remedy_stays():
    told = str(
        ConfigError(f"key = {'x' * 10_000!r}, but it isn't allowed; lower the model's width")
    )
    assert len(told) < 300 and told.endswith("but it isn't allowed; lower the model's width")
    many = str(ConfigError("; ".join(f"key {n} is wrong" for n in range(9999)) + "; do this"))
    assert len(many) <= 4000 and many.endswith("; do this")


def test_types_are_those_of_the_fields():
    kinds = {"a": int, "b": float | None, "c": str, "d": bool, "e": list[str]}
    assert type_problems({"a": 1, "b": None, "c": "x", "d": True, "e": 3}, kinds) == []
    wrong = type_problems({"a": True, "b": "x", "c": 1, "d": 0}, kinds)
    assert wrong == [
        "a = True: a whole number",
        "b = 'x': a number or null",
        "c = 1: text",
        "d = 0: true or false",
    ]
    assert type_problems({"a": 10**400, "b": float("nan")}, kinds) != []
