"""Processes for tests that find torch and transformers imported, which takes seconds otherwise."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

_IMPORTED = ["tiny_families", "easyedit_dualedit.commands.parser"]


def forkserver_method() -> str:
    """Return the method of starting that takes copies of one process that has imported all.

    Copies of pytest's own process would not do: it has threads, and has computed gradients.
    """
    tests = Path(__file__).parent
    paths = [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patched:
        # The server, which is started once, looks for modules nowhere else.
        patched.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        forkserver.ensure_running()
    return "forkserver"


def started(work: Callable[..., Any], *arguments: Any) -> ForkServerProcess:
    """Return a process that has begun to do some work."""
    process = multiprocessing.get_context(forkserver_method()).Process(target=work, args=arguments)
    process.start()
    return process  # type: ignore[return-value]
