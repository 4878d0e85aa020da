"""Keeps what EasyEdit prints, logs and writes away from whoever runs the benchmark."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

LOG_FILE = "easyedit.log"
_PRINTED_FILE = "printed.log"
HARMLESS = "Full backward hook is firing"
"""How a warning begins that MEND's hooks give at every edit."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what EasyEdit prints and warns of."""
    # On import it has every library log what it does.
    talkative = logging.getLogger("sentence_transformers")
    level = talkative.level
    talkative.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talkative.setLevel(level)


@contextlib.contextmanager
def own_output(folder: Path) -> Iterator[None]:
    """Keep what EasyEdit writes, prints and logs in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    theirs = logging.getLogger("easyeditor")
    handler = logging.FileHandler(folder / LOG_FILE, encoding="utf-8")
    level, propagates = theirs.level, theirs.propagate
    theirs.addHandler(handler)
    theirs.setLevel(logging.INFO)
    theirs.propagate = False
    try:
        with (
            contextlib.chdir(folder),
            (folder / _PRINTED_FILE).open("a", encoding="utf-8") as printed,
            contextlib.redirect_stdout(printed),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=HARMLESS)
            yield
    finally:
        theirs.removeHandler(handler)
        handler.close()
        theirs.setLevel(level)
        theirs.propagate = propagates
