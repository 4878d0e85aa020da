"""Files that several processes need: each is made by one of them, and read by all."""

from collections.abc import Callable, Sequence
from pathlib import Path

from easyedit_dualedit.errors import LockError
from easyedit_dualedit.storage.folder_lock import PATIENCE, locked


def made_once(
    paths: Sequence[Path],
    make: Callable[[int], None],
    *,
    seen: Callable[[int], object] = lambda _place: None,
    patience: float = PATIENCE,
) -> None:
    """Return once all files are there; those that nobody makes yet are made here.

    A file that another process is making is left to it until nothing else is missing; if that
    process ends without it, it is made here after all.

    Args:
        paths: of the files.
        make: writes the file at a place of `paths`, whole or not at all.
        seen: told the place of each file as soon as it is there.
        patience: seconds to wait for another process.

    Raises:
        LockError: if another process does not end with a file in that time.
        OSError: if a folder cannot be written.
    """
    missing = list(range(len(paths)))
    for wait in (0.0, patience):
        left = []
        for place in missing:
            path = paths[place]
            try:
                if not path.is_file():
                    with locked(path.parent, name=f".{path.name}.lock", patience=wait):
                        if not path.is_file():
                            make(place)
            except LockError:
                if wait:
                    raise
                left.append(place)
            else:
                seen(place)
        missing = left
