"""ZIP files of edits: written from a folder, and unpacked with nothing in them trusted."""

import re
import shutil
import zipfile
from pathlib import Path

from easyedit_dualedit.app.session_folder import PICTURES, SESSION_FILE
from easyedit_dualedit.errors import DataError
from easyedit_dualedit.method.edit_file import EDITS_FILE, NUMBERS_FILE

LARGEST = 2**29
"""Bytes that a file may unpack to."""

MOST_FILES = 10_000

_KNOWN = (EDITS_FILE, NUMBERS_FILE, SESSION_FILE)
_PICTURE = re.compile(rf"{PICTURES}/[0-9a-f]{{1,64}}\.png")


def packed(folder: Path, made: Path) -> Path:
    """Write those files of a folder that `unpacked` takes to a ZIP file, and return that.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                inner = path.relative_to(folder).as_posix()
                if _is_known(inner):
                    archive.write(path, inner)
    except OSError as error:
        raise DataError(f"cannot write a file to take away: {error.strerror or error}") from error
    return made


def unpacked(file: Path, folder: Path) -> None:
    """Unpack a ZIP file that `packed` made to a folder; files it does not write are left out.

    Raises:
        DataError: if it is no such file, or is too large.
    """
    what = "give a file that Save or Export of this page wrote"
    try:
        with zipfile.ZipFile(file) as archive:
            chosen = [item for item in archive.infolist() if _is_known(item.filename)]
            if EDITS_FILE not in {item.filename for item in chosen}:
                raise DataError(f"there are no edits in this file; {what}")
            if len(chosen) > MOST_FILES or sum(item.file_size for item in chosen) > LARGEST:
                raise DataError(f"this file unpacks to more than {LARGEST >> 20} MB; {what}")
            for item in chosen:
                target = folder / item.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(item) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise DataError(f"this is no ZIP file that can be read ({error}); {what}") from error


def _is_known(name: str) -> bool:
    return name in _KNOWN or _PICTURE.fullmatch(name) is not None
