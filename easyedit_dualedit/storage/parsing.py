"""Whatever a parser raises becomes one line that names the file and says what to do."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import DataError, DualEditError, shortened

JSON_LINES = "it is JSON lines, a record a line: put all into one list, [..., ...]"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@contextlib.contextmanager
def parsing(
    source: object, remedy: str, kind: type[DualEditError] = DataError, *, wrong: str = "is damaged"
) -> Iterator[None]:
    """Raise whatever is raised inside as an error that names the source.

    Parsers raise almost anything: an integer of 5,000 digits, a date such as 2020-99-99, lists
    within lists by the thousand and broken pictures each have an exception of their own. Errors of
    this package pass through.

    Args:
        source: file, or where else the content comes from.
        remedy: what the user can do.
        kind: of the error.
        wrong: what is wrong with the source if it can be read.

    Raises:
        DualEditError: of that kind, if anything goes wrong.
    """
    try:
        yield
    except DualEditError:
        raise
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise kind(f"cannot read {shortened(source)}: {reason}; {remedy}") from error
    except Exception as error:
        raise kind(f"{shortened(source)} {wrong} ({one_line(error)}); {remedy}") from error


def one_line(error: BaseException) -> str:
    """Return what an exception says, in a line of at most 200 characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return shortened(f"it has no {error}")
    return shortened(" ".join(str(error).split()) or type(error).__name__)


def json_in(path: Path, remedy: str, kind: type[DualEditError] = DataError, **more: Any) -> Any:
    """Return what a JSON file holds, with a byte order mark in front or without one.

    Raises:
        DualEditError: of that kind, if it cannot be read or is no JSON.
    """
    with parsing(path, remedy, kind, **more):
        content = path.read_bytes()
    with parsing(path, hint(content) or remedy, kind, **more):
        return json.loads(content.decode("utf-8-sig"))


def hint(content: bytes) -> str | None:
    """Return what to do with content that is no JSON but nearly."""
    if content.startswith(_UTF_16):
        return "it is UTF-16: save it as UTF-8"
    first, _, rest = content.strip().partition(b"\n")
    with contextlib.suppress(ValueError, RecursionError):
        if isinstance(json.loads(first), dict) and rest:
            return JSON_LINES
    return None
