"""Folders that are shared as repositories of the hub: adapters, or edits; what of them travels."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from easyedit_dualedit.errors import ArchiveError, HubError
from easyedit_dualedit.method.archive import CONFIG_FILE, WEIGHTS_FILE, Archive
from easyedit_dualedit.method.edit_file import EDITS_FILE, NUMBERS_FILE, EditFile
from easyedit_dualedit.storage.folder_lock import locked
from easyedit_dualedit.storage.hub import downloaded, names_repository

ARCHIVE_FILES = (CONFIG_FILE, WEIGHTS_FILE)
EDIT_FILES = (EDITS_FILE, NUMBERS_FILE)
CARD_FILE = "README.md"


@dataclass(frozen=True)
class SharedFolder:
    """What a folder that can be shared holds, read and checked."""

    folder: Path
    content: Archive | EditFile

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return what a folder holds.

        Raises:
            ArchiveError: if it holds neither adapters nor edits, or both, or they are damaged.
        """
        if (folder / EDITS_FILE).is_file():
            if (folder / CONFIG_FILE).is_file():
                raise ArchiveError(
                    f"{folder} holds adapters and edits; keep them in a folder each, since a"
                    " repository holds one of them"
                )
            return cls(folder, EditFile.load(folder))
        if folder.is_file() or not (folder / CONFIG_FILE).is_file():
            raise ArchiveError(
                f"{folder} holds neither adapters ({' and '.join(ARCHIVE_FILES)}) nor edits"
                f" ({' and '.join(EDIT_FILES)}); give a folder that training or `edits` wrote"
            )
        return cls(folder, Archive.load(folder))

    @property
    def summary(self) -> str:
        """What it holds, in a few words."""
        if isinstance(self.content, EditFile):
            count = len(self.content.edits)
            return f"{count:,} edit{'' if count == 1 else 's'}"
        config = self.content.config
        return f"adapters at decoder layers {config.text_layer} and {config.vision_layer}"

    @property
    def files(self) -> tuple[str, ...]:
        """The names of the files that it consists of."""
        return ARCHIVE_FILES if isinstance(self.content, Archive) else EDIT_FILES


def require_room(output: Path, *, may_replace: bool) -> None:
    """Check that a folder may be written: it is new or empty, or holds what may be replaced.

    Raises:
        ArchiveError: saying what is in the way.
    """
    if not output.name:
        raise ArchiveError(f"{output} is the current folder; name a new one to be made in it")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    known = {CARD_FILE, *ARCHIVE_FILES, *EDIT_FILES}
    others = [] if output.is_file() else sorted({each.name for each in output.iterdir()} - known)
    if output.is_file() or others or not may_replace:
        there = "a file" if output.is_file() else ", ".join(others[:3]) or "such files"
        remedy = "choose another --output" + ("" if others or may_replace else ", or give --fresh")
        raise ArchiveError(f"{output} is there already and holds {there}; {remedy}")


def put_in_place(shared: SharedFolder, output: Path, *, may_replace: bool) -> None:
    """Copy what can be shared to a folder, whole or not at all.

    Args:
        shared: what is copied, with the card beside it.
        output: the folder.
        may_replace: whether it may hold others, which then go.

    Raises:
        ArchiveError: if something else is there, or the folder cannot be written.
        LockError: if another process is writing it and does not end soon.
    """
    waiting = output.with_name(f".{output.name}.part")
    old = output.with_name(f".{output.name}.old")
    try:
        with locked(output.parent, name=f".{output.name}.lock"):
            for left in (waiting, old):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            waiting.mkdir()
            for name in (*shared.files, CARD_FILE):
                if (shared.folder / name).is_file():
                    shutil.copyfile(shared.folder / name, waiting / name)
            require_room(output, may_replace=may_replace)
            if output.exists():
                output.rename(old)
            waiting.rename(output)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise ArchiveError(f"cannot write {output}: {error.strerror or error}") from error


def adapters_folder(name: Path | str, **download: Any) -> Path:
    """Return the folder of adapters that a path or the name of a hub's repository means.

    Args:
        name: a path is returned as it is, also if there is nothing yet; a repository's files are
            fetched into the hub's cache.
        download: options of `huggingface_hub.snapshot_download`, such as revision and token.

    Raises:
        ArchiveError: if there is no such folder, and the hub has none of this name to give.
    """
    if not names_repository(str(name)):
        return Path(name)
    try:
        return downloaded(str(name), ARCHIVE_FILES, **download)
    except HubError as error:
        raise ArchiveError(
            f"no adapters in {str(name)!r}: there is nothing in that folder, and the hub has none"
            f" to give ({error})"
        ) from error
