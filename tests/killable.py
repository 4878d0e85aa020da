"""Work in copies of a process that has everything imported, killed at any moment.

Each copy takes hundredths of a second to start, so that a command can be killed fifty times. A
copy is killed after some time, or right before one of its changes of files, by number: between two
renames as well. Run as a script, this module is that process: a line of JSON in is a copy made,
a line of JSON out is how it ended.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

SLOWEST = 300.0
"""Seconds that anything may take here, on a busy machine."""

_CHANGES = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Ended:
    """How a copy ended."""

    code: int
    """Its exit code; below zero if it was killed."""
    seconds: float
    changes: int
    """Changes of files that it has made, if it was not killed."""
    said: str
    """What it wrote to its streams."""

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Killable:
    """Starts work in copies of one process."""

    def __init__(self, folder: Path):
        """Start the process; only what is opened below `folder` counts as a change of files."""
        self._log = folder / "log"
        paths = [str(Path(__file__).parents[1]), *sys.path]
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(SLOWEST)

    def run(
        self,
        arguments: Sequence[object],
        *,
        work: str = "command",
        seconds: float = SLOWEST,
        change: int = -1,
        privileged: bool = True,
    ) -> Ended:
        """Return how some work ended.

        Args:
            arguments: of the work; a command line, for a command.
            work: a key of `WORK`.
            seconds: to kill it after.
            change: of files, to kill it right before; -1 for none.
            privileged: False takes from root what it may do beyond the rights of a file's owner.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        asked = {
            "work": work,
            "arguments": [str(each) for each in arguments],
            "seconds": seconds,
            "change": change,
            "privileged": privileged,
            "log": str(self._log),
        }
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(**answer, said=self._log.read_text(errors="replace"))


def command(arguments: list[str]) -> int:
    """Run a command, with a checkpoint after every step and every few edits."""
    from easyedit_dualedit.commands import edits
    from easyedit_dualedit.commands import parser as cli
    from easyedit_dualedit.train import trainer

    trainer.CHECKPOINT_EVERY = 1
    edits._SAVED_EVERY = 0.0
    return cli.main(arguments)


def save(arguments: list[str]) -> int:
    """Load adapters and save them over and over: folder, and how often."""
    from easyedit_dualedit.method.archive import Archive

    folder, times = Path(arguments[0]), int(arguments[1])
    archive = Archive.load(folder)
    for _ in range(times):
        archive.save(folder)
    return 0


WORK: dict[str, Callable[[list[str]], int]] = {"command": command, "save": save}


class _Changes:
    """Counts changes of files, and ends the process right before one of them."""

    def __init__(self, folder: str, last: int):
        self.count = 0
        self._folder, self._last = folder, last

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if not (name.startswith(self._folder) and flags & _WRITES):
                return
        elif event not in _CHANGES:
            return
        if self.count == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1


def _drop_privileges() -> None:
    """Let root be kept out where its files say so, as anybody else is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return
    import ctypes

    version, none = 0x20080522, 0
    header, rights = (ctypes.c_uint32 * 2)(version, none), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "cannot give up the rights of root")


def _copy(asked: dict[str, Any], folder: str, told: int) -> None:
    """Do some work in a copy of this process, which then ends."""
    code = 1
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        if not asked["privileged"]:
            _drop_privileges()
        changes = _Changes(folder, asked["change"])
        sys.addaudithook(changes)
        code = WORK[asked["work"]](asked["arguments"])
        os.write(told, str(changes.count).encode())
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(asked: dict[str, Any], folder: str) -> dict[str, Any]:
    reading, writing = os.pipe()
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        _copy(asked, folder, writing)
    os.close(writing)
    end = start + asked["seconds"]
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() >= end:
            # With all that it has started itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            break
        time.sleep(0.002)
    _, status = os.waitpid(process, 0)
    with os.fdopen(reading) as counted:
        changes = int(counted.read() or 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - start,
        "changes": changes,
    }


def _import_everything() -> None:
    import gc
    import importlib
    import pkgutil

    import torch

    import easyedit_dualedit

    torch.set_num_threads(1)
    for module in pkgutil.walk_packages(easyedit_dualedit.__path__, "easyedit_dualedit."):
        # The one, which runs a command, and the other, which needs EasyEdit.
        if not module.name.endswith(("__main__", ".editable")):
            importlib.import_module(module.name)
    for name in ("tiny_families", "matplotlib.pyplot", "transformers.trainer_utils"):
        importlib.import_module(name)
    # A command says itself what it logs; what was imported has said so first.
    logging.getLogger().handlers.clear()
    gc.collect()
    gc.freeze()  # what stays to the end is left out of every later collection


def _serve(folder: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _import_everything()
    for line in sys.stdin:
        answers.write(json.dumps(_ended(json.loads(line), folder)) + "\n")
        answers.flush()
    os._exit(0)  # to tidy up so many modules takes seconds


if __name__ == "__main__":
    _serve(sys.argv[1])
