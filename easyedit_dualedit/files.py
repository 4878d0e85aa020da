"""Files that are written whole or not at all, and digests of what they hold."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from easyedit_dualedit.errors import ArchiveError, DataError, shortened
from easyedit_dualedit.storage.parsing import json_in


def folder_of(folder: Path | str) -> Path:
    """Return a folder to write to.

    Raises:
        ArchiveError: if its name is blank, which would be the current folder.
    """
    if not str(folder).strip():
        raise ArchiveError(f"folder = {folder!r}: name a folder to write to")
    return Path(folder)


def digest_of(path: Path) -> str:
    """Return a short hash of a file, or of the files of a folder.

    Raises:
        DataError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()[:16]


def require_writable(folder: Path) -> None:
    """Raise unless a folder can be written to, or made.

    Raises:
        ArchiveError: if it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ArchiveError(f"cannot write to {folder}: {existing} is no folder to write in")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all; several processes may write the same one.

    Raises:
        DataError: if the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # a zero in a name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot write {shortened(path)}: {reason}") from error


def clear_parts(folder: Path) -> None:
    """Remove what killed processes were writing in a folder; what others write now stays."""
    for part in folder.glob("*.part"):
        owner = part.name.removesuffix(".part").rpartition(".")[2]
        if owner.isdigit() and not _is_running(int(owner)):
            part.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True  # somebody else's
    except (OSError, OverflowError):
        return False
    return process != os.getpid()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Half of a surrogate pair, such as a name that is not UTF-8 has, is written as JSON escapes it.

    Raises:
        DataError: if the file cannot be written.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a value to a JSON file, whole or not at all.

    Raises:
        DataError: if the file cannot be written.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is no file.

    Raises:
        DataError: if the file is damaged or holds something else.
    """
    try:
        if not path.is_file():
            return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    value = json_in(path, "remove it to have it made again")
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no case; remove it to have it made again")
    return value
