"""One process at a time changes a folder; the system gives a lock back when its process ends."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from easyedit_dualedit.errors import LockError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""Lies in a folder for as long as somebody changes it."""

PATIENCE = 900.0
"""Seconds to wait for another process, unless told otherwise."""

_SILENT = 2.0
"""Seconds of waiting that nobody needs to be told of."""


@contextlib.contextmanager
def locked(folder: Path, *, name: str = LOCK_FILE, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a folder, which is made if it is not there.

    A process that holds it may take it again. It is lost with the process, however that ends, and
    the file that a killed process leaves behind stops nobody.

    Args:
        folder: what is changed meanwhile.
        name: of the lock's file, for folders with several locks.
        patience: seconds to wait for another process; a message says so.

    Raises:
        LockError: if another process still holds it then.
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # One object a file, so that a caller and its callee hold the same lock.
    lock = FileLock(path.absolute(), is_singleton=True)
    _acquire(lock, folder, patience)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is held: whoever waits sees that this file has no name any longer.
            with contextlib.suppress(OSError):
                path.unlink()
        lock.release()


@contextlib.contextmanager
def locked_part(folder: Path, part: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold one part of a folder: others may hold other parts meanwhile, but nobody the whole.

    Args:
        folder: as `locked` takes it.
        part: its name.
        patience: seconds to wait for each process that is in the way.

    Raises:
        LockError: if another process still holds the part, or the whole.
        OSError: if the folder cannot be written.
    """
    with contextlib.ExitStack() as held:
        with locked(folder, patience=patience):
            held.enter_context(locked(folder, name=_of_part(part), patience=patience))
        yield


@contextlib.contextmanager
def locked_whole(folder: Path, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold a folder while nobody holds it, or a part of it.

    Args:
        folder: as `locked` takes it.
        patience: seconds to wait for each process that is in the way.

    Raises:
        LockError: if another process still holds the folder, or a part of it.
        OSError: if the folder cannot be written.
    """
    with locked(folder, patience=patience):
        # No other part is begun while this is held; those that were are waited for.
        for path in sorted(folder.glob(_of_part("*"))):
            with locked(folder, name=path.name, patience=patience):
                pass
        yield


def _of_part(part: str) -> str:
    return f"{LOCK_FILE}-{part}"


def _acquire(lock: FileLock, folder: Path, patience: float) -> None:
    silent = min(_SILENT, patience)
    try:
        lock.acquire(timeout=silent)
        return
    except Timeout:
        if patience > silent:
            logger.warning("another process is changing %s; waiting until it is done", folder)
    try:
        lock.acquire(timeout=patience - silent)
    except Timeout as error:
        raise LockError(
            f"another process is changing {folder} and did not end within {patience:.0f} seconds;"
            " wait for it or stop it, then give the same command again"
        ) from error
