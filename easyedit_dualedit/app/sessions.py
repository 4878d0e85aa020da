"""Everybody's sessions: found again by a key that only their browser knows."""

import re
import secrets
import threading
from collections import OrderedDict
from pathlib import Path

from easyedit_dualedit.app.session import Session
from easyedit_dualedit.app.shared_editor import SharedEditor

_KEY = re.compile(r"[0-9a-f]{32}")
_OPEN_AT_ONCE = 100
"""Sessions held in memory; others are read from disk when they come back."""


class Sessions:
    """Sessions by key, each in a folder of its own; one editor answers for all."""

    def __init__(self, shared: SharedEditor, folder: Path, first_edits: Path | None = None):
        """Keep sessions below a folder.

        Args:
            shared: answers.
            folder: made when the first session is written.
            first_edits: a folder of edits that every new session begins with.
        """
        self.shared = shared
        self.folder = folder
        self._first_edits = first_edits
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._written: set[str] = set()
        """Keys whose folders were seen."""

    @staticmethod
    def new_key() -> str:
        """Return a key that nobody can guess."""
        return secrets.token_hex(16)

    @staticmethod
    def is_key(text: object) -> bool:
        """Return whether a text is a key, and so safe as the name of a folder."""
        return isinstance(text, str) and _KEY.fullmatch(text) is not None

    def of(self, key: str) -> Session:
        """Return the session of a key; a new one if nobody has used it.

        Raises:
            DualEditError: if what is on disk is damaged, or of another model.
            KeyError: if it is no key.
        """
        if not self.is_key(key):
            raise KeyError("no key of a session")
        place = self.folder / key
        with self._lock:
            if place.is_dir():
                self._written.add(key)
            elif key in self._written:  # somebody has removed it
                self._written.remove(key)
                self._open.pop(key, None)
            if key not in self._open:
                self._open[key] = Session(self.shared, place, self._first_edits)
            self._open.move_to_end(key)
            while len(self._open) > _OPEN_AT_ONCE:
                self._open.popitem(last=False)
            return self._open[key]
