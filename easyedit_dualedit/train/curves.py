"""The curves of a training: one JSON object a line, in the order of its steps.

A continued training keeps the lines that its checkpoint knows of and writes the others again, so
that none is there twice and none is missing.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import DataError
from easyedit_dualedit.files import clear_parts, write_text

LINES_FILE = "curves.jsonl"
TABLE_FILE = "curves.csv"

Line = dict[str, Any]
"""Values by name: `step`, `part` ("training" or "validation"), and what was measured."""

Listener = Callable[[Line], None]
"""Is told every line once it is written."""


class Curves:
    """The file of a training's lines."""

    def __init__(self, folder: Path, listeners: Sequence[Listener] = ()):
        """Write nothing yet.

        Args:
            folder: of the file; made if it is not there.
            listeners: told of every line.
        """
        self._path = folder / LINES_FILE
        self._listeners = listeners
        self._count = 0

    def begin(self, count: int) -> None:
        """Keep the first `count` lines of an earlier process, and no other.

        Raises:
            DataError: if the file cannot be read or written.
        """
        clear_parts(self._path.parent)
        kept = _whole_lines(self._path)[:count]
        self._count = len(kept)
        write_text(self._path, "".join(f"{line}\n" for line in kept))

    @property
    def count(self) -> int:
        """Lines so far."""
        return self._count

    def add(self, line: Line) -> None:
        """Write a line.

        Raises:
            DataError: if the file cannot be written.
        """
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise DataError(f"cannot write {self._path}: {error.strerror}") from error
        self._count += 1
        for listener in self._listeners:
            listener(line)


def read_curves(folder: Path) -> list[Line]:
    """Return the lines of a training.

    Raises:
        DataError: if there are none, or they are damaged.
    """
    path = folder / LINES_FILE
    if not path.is_file():
        raise DataError(f"no curves in {folder}: there is no {LINES_FILE}; give what train wrote")
    lines = [json.loads(line) for line in _whole_lines(path)]
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict) or not {"step", "part"} <= line.keys():
            raise DataError(f"{path}, line {number} is no step of a training; remove the line")
    return lines


def write_table(lines: Sequence[Line], path: Path) -> None:
    """Write lines as a CSV file: a column for each value, named by its way, such as loss.total.

    Raises:
        DataError: if the file cannot be written.
    """
    rows = [flat(line) for line in lines]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by their way, names joined by dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        way = f"{prefix}{name}"
        found |= flat(value, f"{way}.") if isinstance(value, Mapping) else {way: value}
    return found


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file that are JSON, up to the first that is not."""
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    lines = []
    for line in text.splitlines():
        try:
            json.loads(line)
        except ValueError:
            break  # a process was killed while it wrote it
        lines.append(line)
    return lines
