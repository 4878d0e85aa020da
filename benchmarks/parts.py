"""Keeps what parts of a long measurement found, so that an interrupted one goes on where it was."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from easyedit_dualedit.files import read_json, write_json
from easyedit_dualedit.measure.run import SETTINGS_FILE, Run


class Parts:
    """The parts of one measurement, in a folder until all of them are there."""

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        """Go on with a measurement, or begin one where the folder holds another or none.

        Args:
            folder: where to keep parts; None keeps none.
            settings: plain values that decide what is measured, and on what.
        """
        self._folder = folder
        if folder is not None and not Run.holds(folder, settings):
            shutil.rmtree(folder, ignore_errors=True)
            write_json(folder / SETTINGS_FILE, settings)

    def get(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a part, measured unless it was before."""
        if self._folder is None:
            return measure()
        path = self._folder / f"{name.replace(',', '').replace(' ', '-')}.json"
        found = read_json(path)
        if found is None:
            found = measure()
            write_json(path, found)
        return found

    def forget(self) -> None:
        """Remove what was kept, once it stands elsewhere."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
