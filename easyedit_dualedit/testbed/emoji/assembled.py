"""The emoji model on this machine: put together beside its place, then moved there whole."""

import json
import tempfile
from pathlib import Path

from easyedit_dualedit.errors import DataError, PartsError
from easyedit_dualedit.files import digest_of
from easyedit_dualedit.testbed.emoji.assembling import assemble, weights_folder
from easyedit_dualedit.testbed.emoji.parts import Parts

_MARK = "assembled.json"
"""File of a model's folder that says of which trained weights it was made."""


def is_current(folder: Path) -> bool:
    """Return whether a whole model lies in a folder, made of the weights of this package."""
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(mark == _mark_of_now())


def put_together(parts: Parts, folder: Path) -> None:
    """Put the model together and move it to a folder, in place of what is there.

    An interrupted call leaves the folder as it was.

    Raises:
        DataError: if the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".assembling-") as scratch:
            # EasyEdit knows the family of a model by its folder's name, and so may its card.
            made = Path(scratch) / folder.name
            assemble(parts.folder, made)
            (made / _MARK).write_text(json.dumps(_mark_of_now()), encoding="utf-8")
            if folder.exists():
                folder.rename(Path(scratch) / "replaced")
            made.rename(folder)
    except PartsError:
        raise
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error


def _mark_of_now() -> dict[str, str]:
    weights = sorted(weights_folder().glob("*.safetensors"))
    return {path.name: digest_of(path) for path in weights}
